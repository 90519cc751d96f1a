"""Runs the studies of policies, and writes docs/policy_study.md and its picture.

    python docs/policy_study.py
    python docs/policy_study.py --report   # the page alone, of the newest runs in the store

The folder of the data sets comes from GRADRANK_DATA_ROOT.
"""

import argparse
import sys
from pathlib import Path

import mlflow
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from launch.report import read_cells
from launch.run import run_study
from launch.study import Study, read_study
from launch.tracking import Store, read_study_record

STUDIES = tuple(Path(f"mlflow_configs/{name}.yaml") for name in ("policies", "budget", "tolerance"))
PAGE, PICTURE = Path("docs/policy_study.md"), Path("docs/images/policies.png")
TAU = 0.05

HEAD = """# Policies side by side

{steps} steps of Adam with {batch} samples each on {workers} workers, {seeds} seeds: means, ± standard deviations.
*bytes*: on the wire, of dense's, over all steps, those before the first audit included. *error*: the compression error
‖M − Ĝ‖ / ‖M‖ over all compressed matrices together, its mean over audited steps that no rank was chosen by; *within*:
the share of these steps with an error up to {tau}. `svd (oracle)` is the yardstick: its bytes are those of the factors
that its ranks would take. [What each policy does](policies.md). Written by `python docs/policy_study.py`, which runs
[policies.yaml](../mlflow_configs/policies.yaml), [budget.yaml](../mlflow_configs/budget.yaml) and
[tolerance.yaml](../mlflow_configs/tolerance.yaml).

![Held-out accuracy and training loss against bytes](images/policies.png)

| network | method | bytes | training loss | held-out loss | accuracy | error | within |
|---|---|--:|--:|--:|--:|--:|--:|
"""

BUDGET = """
## The same bytes, shared

PowerSGD at rank {rank} for all matrices, and its bytes shared by policy `budget`: {steps} steps of SGD with momentum,
{batch} samples each, {seeds} seeds. Beside the means of the losses stands by how much they are above (+) or below (−)
those of rank {rank}: the mean over seeds of the relative difference, ± its standard error.

| network | method | bytes | training loss | against rank {rank} | held-out loss | against rank {rank} | error |
|---|---|--:|--:|--:|--:|--:|--:|
"""

FULL = """
## All data in every step

The tolerance policy, τ = {tau}, on digits with all {batch} training samples in each of {steps} steps, so that gradients
hardly change and everything that is left out piles up. Ranks were chosen by every fifth audit; counted are the others.

| network | seed | training loss | audited steps | within τ | 95th percentile | worst | bytes |
|---|--:|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Run the studies and write the page."""
    parser = argparse.ArgumentParser(description="Run the studies of policies, and write their page.")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page of the newest runs")
    options = parser.parse_args()
    side_by_side, budget, full = studies = tuple(map(read_study, STUDIES))
    for study in studies:
        if not options.report and (code := run_study(study, Console())):
            sys.exit(code)
    cells = read(side_by_side)
    draw(cells)
    pages = page(side_by_side, cells), budget_page(budget, read(budget)), full_page(full, read(full))
    PAGE.write_text("".join(pages), encoding="utf-8")


def read(study: Study) -> pd.DataFrame:
    """Finished cells of the newest run, with the errors of their audits."""
    store = Store.open(study.config.tracking.uri)
    record = read_study_record(store, study.config.experiment)
    cells = read_cells(record.cells)
    mlflow.set_tracking_uri(store.uri)
    finished = [cell for cell in record.cells if cell.status == "FINISHED"]
    audits = [
        pd.read_parquet(mlflow.artifacts.download_artifacts(f"runs:/{cell.run_id}/audits.parquet")) for cell in finished
    ]
    revised = study.cells[0].config.audit.revise_every or 1
    cells["errors"] = [errors(rows[rows["step"] % revised != 0]) for rows in audits]
    cells["share"] = 1 / cells["compression_ratio"]
    bends = cells["alpha"].map("{:g}".format)
    cells["model"] = cells["model"].where(cells["model"] != "mlp", "mlp, α = " + bends)
    for place, rows in enumerate(audits):
        if cells.loc[place, "compressor"] == "svd":
            cells.loc[place, "share"] = of_factors(rows, cells.loc[place, "bytes_per_step"])
    return cells


def of_factors(rows: pd.DataFrame, dense: float) -> float:
    """What factors of the audited ranks would cost, of dense's bytes: svd itself saves none."""
    whole, factors = rows["m"] * rows["n"], rows["communicated_rank"] * (rows["m"] + rows["n"])
    saved = (whole - factors.clip(upper=whole)).groupby(rows["step"]).sum().mean()
    return 1 - 4 * float(saved) / dense


def errors(rows: pd.DataFrame) -> "pd.Series[float]":
    """The compression error of each audited step, all compressed matrices together: 0 where all were sent dense."""
    if not rows["compressed"].any():
        return pd.Series(dtype=float)
    sums = (
        rows.assign(error=rows["input_error_norm"] ** 2, size=rows["input_norm"] ** 2)
        .where(rows["compressed"], 0.0)
        .groupby(rows["step"])[["error", "size"]]
        .sum()
    )
    found: pd.Series[float] = (sums["error"] / sums["size"].clip(lower=1e-300)) ** 0.5
    return found


def page(study: Study, cells: pd.DataFrame) -> str:
    """The table: a row for each network and method."""
    train = study.cells[0].config
    text = HEAD.format(
        steps=train.train.steps,
        batch=train.train.batch_size,
        workers=train.cluster.workers,
        seeds=cells["seed"].nunique(),
        tau=TAU,
    )
    for (model, method), same in cells.groupby(["model", "method"], sort=False):
        found = pd.concat(list(same["errors"]))
        columns = [
            model,
            method,
            f"{same['share'].mean():.2f}",
            spread(same["train_loss"], 4),
            spread(same["loss"], 4),
            f"{same['accuracy'].mean():.2%} ± {100 * same['accuracy'].std():.2f}",
            f"{found.mean():.2g}" if len(found) else "–",
            f"{(found <= TAU).mean():.0%}" if len(found) else "–",
        ]
        text += f"| {' | '.join(columns)} |\n"
    return text


def budget_page(study: Study, cells: pd.DataFrame) -> str:
    """The second table: a row for each network and method, against the same rank for all, seed by seed."""
    train = study.cells[0].config.train
    text = BUDGET.format(rank=4, steps=train.steps, batch=train.batch_size, seeds=cells["seed"].nunique())
    for model, own in cells.groupby("model", sort=False):
        losses = {name: own.pivot_table(index="seed", columns="method", values=name) for name in ("train_loss", "loss")}
        for method, same in own.groupby("method", sort=False):
            found = pd.concat(list(same["errors"]))
            columns = [model, method, f"{same['share'].mean():.3f}"]
            for name, by_seed in losses.items():
                change = by_seed[method] / by_seed["powersgd (fixed rank=4)"] - 1
                columns += [f"{same[name].mean():.4f}", f"{change.mean():+.1%} ± {100 * change.sem():.1f}"]
            text += f"| {' | '.join([*columns, f'{found.mean():.2g}' if len(found) else '–'])} |\n"
    return text


def full_page(study: Study, cells: pd.DataFrame) -> str:
    """The third table: a row for each cell."""
    train = study.cells[0].config.train
    text = FULL.format(tau=TAU, batch=train.batch_size, steps=train.steps)
    for _, cell in cells.iterrows():
        found = cell["errors"]
        columns = [
            cell["model"],
            f"{cell['seed']:.0f}",
            f"{cell['train_loss']:.1e}",
            str(len(found)),
            f"{(found <= TAU).mean():.1%}",
            f"{found.quantile(0.95):.3f}",
            f"{found.max():.3f}",
            f"{cell['share']:.2f}",
        ]
        text += f"| {' | '.join(columns)} |\n"
    return text


def spread(values: "pd.Series[float]", digits: int) -> str:
    """A mean and its standard deviation."""
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def draw(cells: pd.DataFrame) -> None:
    """Accuracy and training loss against bytes, a column for each network; the line joins what nothing beats."""
    networks, methods = list(cells["model"].unique()), list(cells["method"].unique())
    figure = Figure(figsize=(3.5 * len(networks), 7.2), layout="constrained")
    panels = figure.subplots(2, len(networks), squeeze=False)
    for column, network in enumerate(networks):
        means = (
            cells[cells["model"] == network].groupby("method", sort=False)[["share", "accuracy", "train_loss"]].mean()
        )
        for line, (measure, better) in enumerate((("accuracy", 1), ("train_loss", -1))):
            axes: Axes = panels[line, column]
            for number, method in enumerate(methods):
                point = means.loc[method]
                marker = "*" if method.startswith("svd") else "os^Dv"[number % 5]
                axes.scatter(
                    point["share"], point[measure], s=60, color=colormaps["tab20"](number), marker=marker,
                    edgecolors="0.3", linewidths=0.5, label=method, zorder=3,
                )  # fmt: skip
            front = pareto(means.drop(index=[name for name in methods if name.startswith("svd")]), measure, better)
            axes.plot(front["share"], front[measure], color="0.6", linewidth=1, zorder=1)
            axes.set_xscale("log")
            axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
            axes.minorticks_off()
            axes.set_xlim(0.05, 1.3)
            axes.set_xlabel("wire bytes, of dense's")
            axes.grid(alpha=0.3)
            if measure == "accuracy":
                axes.set_title(network, fontsize=9)
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=2))
        panels[0, 0].set_ylabel("held-out accuracy")
        panels[1, 0].set_ylabel("training loss")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(PICTURE, dpi=110)


def pareto(means: pd.DataFrame, measure: str, better: int) -> pd.DataFrame:
    """The methods that no other beats in both bytes and measure, by bytes."""
    ordered = means.sort_values("share")
    best = (better * ordered[measure]).cummax()
    return ordered[(better * ordered[measure] >= best) & ~best.duplicated()]


if __name__ == "__main__":
    main()

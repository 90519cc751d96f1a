"""Runs the study of accuracies, and writes docs/accuracy.md.

    python docs/accuracy.py
    python docs/accuracy.py --report   # the page alone, of the newest run in the store

The folder of the data sets comes from GRADRANK_DATA_ROOT.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from launch.report import read_cells
from launch.run import run_study
from launch.study import Study, read_study
from launch.tracking import Store, read_study_record

STUDY = Path("mlflow_configs/accuracy.yaml")
PAGE = Path("docs/accuracy.md")

HEAD = """# Accuracy beside dense

Held-out accuracy after {steps} steps of Adam with {batch} samples each on {workers} workers: the mean of {seeds} seeds,
± their standard deviation; *off* is the mean difference to dense training with the same seeds, in points. *even*: every
worker's samples are drawn from all; *by class*: each worker has classes of its own, as separate sites would.
Written by `python docs/accuracy.py`, which runs [accuracy.yaml](../mlflow_configs/accuracy.yaml).

Where a plan is certified lossless its gradients are dense's up to roundoff. Training amplifies roundoff from step to
step, so that accuracies end a little apart, as those of two seeds do (dense's own ± is the noise to compare with).
*fewer bytes* is on the wire; 1.0× means that nothing in the network can be sent by this method without loss at less
than dense costs, and dense is the plan. By class, VGG's batch norms average over each worker's own classes, and their
running statistics, which evaluation uses, are one worker's: dense itself varies by many points there.

| network | data | method | even | off | by class | off | fewer bytes | inf. loss |
|---|---|---|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Run the study and write the page."""
    parser = argparse.ArgumentParser(description="Run the study of accuracies, and write its page.")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page of the newest run")
    options = parser.parse_args()
    study = read_study(STUDY)
    if not options.report and (code := run_study(study, Console())):
        sys.exit(code)
    store = Store.open(study.config.tracking.uri)
    cells = read_cells(read_study_record(store, study.config.experiment).cells)
    PAGE.write_text(page(study, cells), encoding="utf-8")


def page(study: Study, cells: pd.DataFrame) -> str:
    """The table: a row for each network and method."""
    config = study.cells[0].config
    cells = cells.assign(partition=cells["setting"].str.contains("by_class").map({True: "by class", False: "even"}))
    head = HEAD.format(
        steps=config.train.steps,
        batch=config.train.batch_size,
        workers=config.cluster.workers,
        seeds=cells["seed"].nunique(),
    )
    groups = cells.groupby(["model", "data"], sort=False)
    return head + "".join(row(model, data, method, same) for (model, data), same in groups for method in methods(same))


def methods(cells: pd.DataFrame) -> list[str]:
    """The methods of a network, in the study's order."""
    return list(cells["method"].drop_duplicates())


def row(model: str, data: str, method: str, same: pd.DataFrame) -> str:
    """One network trained by one method, on both ways of sharing out the data."""
    mine = same[same["method"] == method]
    columns = [model, data, method]
    for partition in ("even", "by class"):
        accuracy = by_seed(mine, partition)
        off = 100 * (accuracy - by_seed(same[same["method"] == "dense"], partition)).mean()
        columns += [f"{accuracy.mean():.2%} ± {100 * accuracy.std():.2f}", "" if method == "dense" else f"{off:+.2f}"]
    loss = mine["information_loss"].max()
    columns += [f"{mine['compression_ratio'].mean():.1f}×", f"{loss:.0e}" if loss else "0"]
    return f"| {' | '.join(columns)} |\n"


def by_seed(cells: pd.DataFrame, partition: str) -> "pd.Series[float]":
    """Accuracies, indexed by seed."""
    accuracies: pd.Series[float] = cells[cells["partition"] == partition].set_index("seed")["accuracy"]
    return accuracies


if __name__ == "__main__":
    main()

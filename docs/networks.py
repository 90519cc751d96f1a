"""Runs the studies of all networks on the data at hand, and writes docs/networks.md and its figure.

    python docs/networks.py
    python docs/networks.py --report   # the page alone, of the newest runs in the store

The folder of the data sets comes from GRADRANK_DATA_ROOT.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from launch.planning import load
from launch.report import as_markdown, read_cells, report, summarise
from launch.run import run_study
from launch.study import Cell, Study, read_study
from launch.tracking import CellRecord, Store, StudyRecord, read_study_record

STUDY = Path("mlflow_configs/networks.yaml")
LEARNT = (Path("mlflow_configs/mnist.yaml"), Path("mlflow_configs/wikitext.yaml"))
PAGE = Path("docs/networks.md")
PICTURE = Path("docs/images/networks/comparison.png")
"""Where `report` puts it: a folder for each experiment."""

DENSE, FIXED, BOUND = "dense", "powersgd (fixed rank=4)", "powersgd (bound)"
METHODS = (DENSE, FIXED, BOUND)

HEAD = """# Every network on its data

The networks and data sets of Baker et al. (2024), small, on {workers} workers: {steps} steps of Adam with {batch}
samples each. Written, with its figure, by `python docs/networks.py`, which runs
[networks.yaml](../mlflow_configs/networks.yaml); the settings of each row are there. GRU, LSTM and
ResNet-18 are there besides.

- *held-out loss*: before the first step → after the last: dense, PowerSGD at rank 4, PowerSGD at the bound.
- *lossless*: matrices that the plan at the bound compresses and certifies lossless, of all. Where it is none, the
  architecture leaves no gradient low-rank enough to be cheaper in factors, and dense is the lossless plan.
- *inf. loss*: ‖G − Ĝ‖ / ‖G‖ at the bound, the mean over audited steps: roundoff of float32, which training in float32
  amplifies from step to step, so that losses may end a little apart.
- *fewer bytes*: than dense, at rank 4 and at the bound.
- *rank*: the largest measured one, of its bound. *broken*: audited gradients whose rank exceeded their bound, over all
  three runs and all matrices, of how many.
- *s*: seconds of the three runs, start-up of workers and planning apart.

| network | data | held-out loss | lossless | inf. loss | fewer bytes | rank | broken | s |
|---|---|---|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Run the studies and write the page."""
    parser = argparse.ArgumentParser(description="Run the studies of all networks, and write their page.")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page of the newest runs")
    options = parser.parse_args()
    studies = [read_study(path) for path in (STUDY, *LEARNT)]
    if not options.report:
        for study in studies:
            if code := run_study(study, Console()):
                sys.exit(code)
    store = Store.open(studies[0].config.tracking.uri)
    networks, *learnt = (read_study_record(store, study.config.experiment) for study in studies)
    sections = "".join(section(study, record) for study, record in zip(studies[1:], learnt, strict=True))
    PAGE.write_text(page(studies[0], networks, store) + sections, encoding="utf-8")
    report(store, networks.experiment, PICTURE.parent.parent, Console())


def section(study: Study, record: StudyRecord) -> str:
    """A study's own table, and what it started from."""
    cells = read_cells(record.cells)
    measure = next(name for name in ("accuracy", "perplexity") if name in cells)
    train, seconds = study.cells[0].config.train, cells["seconds"]
    start = cells[f"initial_{measure}"].mean()
    name = study.path.name
    return (
        f"\n## {study.config.description.split(':')[0].rstrip('.')}\n\n"
        f"[{name}](../mlflow_configs/{name}): {train.steps:,} steps of {train.batch_size} samples, "
        f"{seconds.min():.0f} to {seconds.max():.0f} s each on two cores.\n"
        f"Held-out {measure} before training: {start:.3g}.\n\n"
        f"{as_markdown(summarise(cells))}\n"
    )


def page(study: Study, record: StudyRecord, store: Store) -> str:
    """The table of all networks: what it shows, and a row for each network and its data."""
    train = study.cells[0].config.train
    head = HEAD.format(workers=study.cells[0].config.cluster.workers, steps=train.steps, batch=train.batch_size)
    cells = read_cells(record.cells)
    rows, notes = [], []
    for start in range(0, len(study.cells), len(METHODS)):
        cell = study.cells[start]
        same = cells.iloc[start : start + len(METHODS)].set_index("method")
        rows.append(
            row(
                cell,
                same,
                [audited(store, run) for run in record.cells[start : start + len(METHODS)]],
                store,
                record.cells[start + 2],
            )
        )
        if at_hand := load(cell.config).notes:
            notes.append(f"- {cell.config.data.kind}: {', '.join(at_hand)}\n")
    told = "".join(dict.fromkeys(notes))
    partial = f"\nOf these data sets a part was at hand, and is what was trained on:\n\n{told}" if told else ""
    figure = "\n![held-out quality against bytes, for each network](images/networks/comparison.png)\n"
    return head + "".join(rows) + partial + figure


def row(cell: Cell, same: pd.DataFrame, audits: list[pd.DataFrame], store: Store, bound: CellRecord) -> str:
    """One row: a network on its data, in three runs."""
    losses = same["loss"]
    ends = " / ".join(f"{losses[method]:.3g}" for method in METHODS)
    matrices = [entry for entry in plan(store, bound) if " × " in entry["shape"]]
    lossless = sum(entry["method"] != "dense" and entry["lossless"] for entry in matrices)
    seen = pd.concat(audits)
    ratios = " / ".join(f"{same.loc[method, 'compression_ratio']:.1f}×" for method in (FIXED, BOUND))
    columns = [
        cell.config.model.kind,
        cell.config.data.kind,
        f"{same.loc[DENSE, 'initial_loss']:.3g} → {ends}",
        f"{lossless} of {len(matrices)}",
        f"{same.loc[BOUND, 'information_loss']:.0e}" if lossless else "0",
        ratios,
        f"{seen['measured_rank'].max():.0f} of {seen['bound'].max():.0f}",
        f"{seen['violated'].sum()} of {len(seen)}",
        f"{same['seconds'].sum():.0f}",
    ]
    return f"| {' | '.join(columns)} |\n"


def plan(store: Store, cell: CellRecord) -> list[dict[str, Any]]:
    """The rows of a cell's plan."""
    path = store.client.download_artifacts(cell.run_id, "plan.json")
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def audited(store: Store, cell: CellRecord) -> pd.DataFrame:
    """The audits of a cell."""
    return pd.read_parquet(store.client.download_artifacts(cell.run_id, "audits.parquet"))


if __name__ == "__main__":
    main()

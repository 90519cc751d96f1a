"""Run a study: plan every cell, start MLflow and Ray, follow the workers, tell how it ended."""

import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from launch import ray_environment
from launch.audit_figure import draw_audits
from launch.planning import PlannedCell, plan_cell
from launch.progress import StudyProgress
from launch.report import MEASURES, report
from launch.study import Study
from launch.tracking import Store, StudyRun

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def dry_run(study: Study, console: Console) -> None:
    """Print every cell with its plan and its predicted bytes; start nothing."""
    for planned in [plan_cell(cell) for cell in study.cells]:  # all are valid before any is printed
        plan = planned.plan
        table = Table(title=f"{planned.cell.index + 1}/{len(study.cells)}  {planned.cell.name}", title_justify="left")
        for heading, justify in (
            ("parameter", "left"),
            ("shape", "right"),
            ("method", "left"),
            ("rank", "right"),
            ("bound", "right"),
            ("lossless", "left"),
            ("bytes", "right"),
            ("why", "left"),
        ):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in plan.rows():
            bound = "" if row["bound"] is None else str(row["bound"])
            lossless = "yes" if row["lossless"] else "no"
            table.add_row(
                row["name"],
                row["shape"],
                row["method"],
                str(row["rank"]),
                bound,
                lossless,
                f"{row['bytes']:,}",
                row["reason"],
            )
        console.print(table)
        console.print(
            f"  {plan.bytes:,} bytes a step and worker handed to collectives, {plan.wire_bytes:,.0f} on the wire; "
            f"dense {plan.dense.bytes:,} and {plan.dense.wire_bytes:,.0f}\n",
            highlight=False,
        )


def run_study(study: Study, console: Console) -> int:
    """Run all cells and print the comparison.

    Returns:
        The exit code: 0; 1 where a cell failed; 130 after Ctrl-C.

    Raises:
        UserError: the study cannot be run as it is; no worker has started then.
    """
    ray_environment.prepare(study.cells[0].config.cluster)
    from launch import cluster  # not before the environment is prepared; other commands are spared the seconds

    started = time.monotonic()
    config = study.config
    log = Path(".gradrank") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}.log"
    cells = [plan_cell(cell) for cell in study.cells]
    groups = _by_cluster(cells)
    joined = cells[0].cell.config.cluster
    console.print(f"{config.name}: {len(cells)} cells; Ray's log: {log}", highlight=False, soft_wrap=True)
    failures: list[str] = []
    with _terminate_as_interrupt(), ThreadPoolExecutor(1) as background:
        opening = background.submit(Store.open, config.tracking.uri, create=True)  # takes as long as Ray does to start
        with cluster.cluster(joined, log):
            store = opening.result()
            for group in groups:
                cluster.check_resources(group[0].cell.config.cluster)
            run = StudyRun(store, config.experiment, _run_name(config.name), config.description, study.values)
            status = "FAILED"
            try:
                failures = _follow(groups, run, console, log)
                status = "FAILED" if failures else "FINISHED"
            except KeyboardInterrupt:
                status = "KILLED"
            finally:
                run.end(status)
            if status == "KILLED":
                console.print("Interrupted: workers are ended, unfinished runs are marked KILLED.", style="yellow")
                cluster.leave_at_once(INTERRUPTED)
    picture = report(store, config.experiment, Path("reports"), console, run_id=run.run_id)
    if picture is not None:
        run.attach(picture)
        console.print(f"Figure: {picture}", highlight=False, soft_wrap=True)
    uri = f" --uri {config.tracking.uri}" if config.tracking.uri else ""
    console.print(f"Compare in MLflow: gradrank ui{uri}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s", highlight=False)
    for failure in failures:
        console.print(f"FAILED {failure}", style="red", highlight=False, soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} of {len(cells)} cells failed; log: {log.absolute()}", soft_wrap=True)
    return 1 if failures else 0


def _follow(groups: Sequence[Sequence[PlannedCell]], run: StudyRun, console: Console, log: Path) -> list[str]:
    """Run group after group, and write down what their cells report; return what failed."""
    from launch import cluster

    planned = {cell.cell.index: cell for group in groups for cell in group}
    names = {number: cell.cell.name for number, cell in planned.items()}
    steps = {number: cell.cell.config.train.steps for number, cell in planned.items()}
    failures: list[str] = []
    with StudyProgress(console, len(planned), steps, names) as progress, tempfile.TemporaryDirectory() as scratch:
        for group in groups:
            for events in cluster.start_group(group, Path(scratch)).events():
                for number, event in _merged(events):
                    match event["event"]:
                        case "running":
                            run.start(planned[number])
                            progress.running(number)
                        case "records":
                            run.record(number, event["records"])
                            progress.advance(number, event["records"][-1]["step"])
                        case "finished":
                            outcome = _finish(run, planned[number], event["result"], Path(scratch))
                            progress.ended(number, outcome)
                        case "failed":
                            run.fail(planned[number], event["message"], event["traceback"])
                            with log.open("a") as file:
                                file.write(f"{names[number]}: {event['message']}\n{event['traceback']}\n")
                            failures.append(f"{names[number]}: {event['message']}")
                            progress.ended(number, f"FAILED: {event['message']}")
    return failures


def _merged(events: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Events with their cells, successive records of a cell as one, so that a fast cell cannot outrun the store."""
    for (kind, number), same in groupby(events, lambda event: (event["event"], event["cell"])):
        if kind == "record":
            yield number, {"event": "records", "records": list(same)}
        else:
            yield from ((number, event) for event in same)


def _finish(run: StudyRun, planned: PlannedCell, result: dict[str, Any], scratch: Path) -> str:
    """Log a cell's summary, audits and figure; return the outcome in a line."""
    summary, audits = result["metrics"], pd.DataFrame(result["audits"])
    picture = None
    if len(audits):
        picture = draw_audits(audits, scratch / "audits.png", planned.cell.name)
    run.finish(planned.cell.index, summary, audits, picture)
    shown = {
        key.removeprefix("summary/"): value
        for key, value in summary.items()
        if key.removeprefix("summary/") in (*MEASURES, "information_loss")
    }
    return ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())


def _by_cluster(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Cells that can share a worker group, together."""

    def key(planned: PlannedCell) -> str:
        return planned.cell.config.cluster.model_dump_json()

    return [list(group) for _, group in groupby(sorted(cells, key=key), key)]


def _run_name(name: str) -> str:
    return f"{name} {datetime.now():%Y-%m-%d %H:%M}"


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does, with workers ended and runs marked."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""The `gradrank` command."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from launch.errors import UserError

USAGE_ERROR = 2
PIPE_WIDTH = 120
"""Columns where the output is no terminal, so that tables stay whole in logs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 well, 1 something failed, 2 a mistake in what was given, 130 Ctrl-C."""
    # torch.export's own deprecations are none of the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|copyreg")
    options = make_parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False)
    try:
        code = options.command(options, console)
    except UserError as error:
        print(f"gradrank: {error}", file=sys.stderr)  # noqa: T201
        code = USAGE_ERROR
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="gradrank", description="Gradient compression whose rank comes from the network's architecture."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a study: every cell of its sweep, tracked in MLflow")
    run.add_argument("config", type=Path, metavar="CONFIG", help="the study, a YAML file")
    _add_set(run, "a setting to change, such as train.steps=100; several allowed")
    run.add_argument("--dry-run", action="store_true", help="print each cell's plan and predicted bytes, start nothing")
    run.set_defaults(command=_run)

    bound = commands.add_parser("bound", help="print the rank bound of every gradient of a network")
    bound.add_argument("--model", default="mlp", help="a built-in network (default: mlp)")
    bound.add_argument("--data", default="digits", help="a built-in data set, for shapes and loss (default: digits)")
    bound.add_argument("--batch-size", type=int, default=128, help="samples of a step, over all workers")
    bound.add_argument("--workers", type=int, default=1, help="workers that average their gradients (default: 1)")
    bound.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    _add_set(bound, "a knob of network or data, such as model.bottleneck=8; several allowed")
    bound.set_defaults(command=_bound)

    report = commands.add_parser("report", help="print a study's comparison and draw its figure")
    report.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="default: the one of the newest study")
    report.add_argument("--uri", help="the MLflow store")
    report.add_argument("--folder", type=Path, default=Path("reports"), help="where figures go (default: reports)")
    report.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to a Markdown file too")
    report.set_defaults(command=_report)

    ui = commands.add_parser("ui", help="open the MLflow store in a browser, served on 127.0.0.1")
    ui.add_argument("experiment", nargs="?", metavar="EXPERIMENT", help="default: the one of the newest study")
    ui.add_argument("--uri", help="the MLflow store")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(command=_ui)

    doctor = commands.add_parser("doctor", help="check what a study needs of this machine")
    doctor.add_argument("--uri", help="the MLflow store")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_set(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="overrides", help=text)


def _run(options: argparse.Namespace, console: Console) -> int:
    from launch.run import dry_run, run_study
    from launch.study import read_study

    study = read_study(options.config, options.overrides)
    if options.dry_run:
        dry_run(study, console)
        return 0
    return run_study(study, console)


def _bound(options: argparse.Namespace, console: Console) -> int:
    from launch.planning import plan_cell
    from launch.study import single_cell

    values: dict[str, Any] = {
        "model": options.model,
        "data": options.data,
        "compressor": "dense",
        "train": {"batch_size": options.batch_size},
        "cluster": {"workers": options.workers},
    }
    bounds = plan_cell(single_cell(values, options.overrides)).bounds
    if options.json:
        print(json.dumps(bounds.to_dict(), indent=2))  # noqa: T201
        return 0
    table = Table(title=f"{options.model} on {options.data}: {options.batch_size} samples, {options.workers} workers")
    for heading in ("parameter", "shape", "bound", "of full", "why"):
        table.add_column(heading, justify="left" if heading in ("parameter", "why") else "right", overflow="fold")
    for name, bound in bounds.items():
        share = bound.rank / min(bound.shape)
        table.add_row(name, "{} × {}".format(*bound.shape), str(bound.rank), f"{share:.0%}", bound.reason)
    console.print(table)
    for name, count in bounds.unknown_ops.items():
        console.print(f"no rule for {name} ({count} calls): everything behind it counts as full")
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    from launch.report import as_markdown, read_cells, report, summarise
    from launch.tracking import Store, read_study_record

    store = Store.open(options.uri)
    picture = report(store, options.experiment, options.folder, console)
    if picture is None:
        return 1
    console.print(f"Figure: {picture}", highlight=False, soft_wrap=True)
    if options.markdown is not None:
        cells = read_cells(read_study_record(store, options.experiment).cells)
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(as_markdown(summarise(cells)) + "\n", encoding="utf-8")
        console.print(f"Table: {options.markdown}", highlight=False, soft_wrap=True)
    return 0


def _ui(options: argparse.Namespace, console: Console) -> int:
    from launch.ui import serve

    serve(options.uri, options.experiment, options.port)
    return 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from launch.doctor import examine

    well = True
    for finding in examine(options.uri):
        mark, style = ("ok", "green") if not finding.mend else ("mend", "red")
        console.print(f"{mark:<4}", style=style, end="  ")
        console.print(f"{finding.what:<13} {finding.found}", highlight=False, soft_wrap=True)
        if finding.mend:
            well = False
            console.print(f"      {'':<13} → {finding.mend}", highlight=False, soft_wrap=True)
    return 0 if well else 1

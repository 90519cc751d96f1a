"""The `gradrank` command."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from launch.errors import UserError

USAGE_ERROR = 2
OWN_MODEL = """\
A function of your own beside --data is called as studies call it: with the data's signature and the settings of --set.
Alone, it is called without arguments and gives a dict, or an object with these attributes:
  model, args                  the network, and a tuple of one worker's inputs in one backward pass
  kwargs, loss, targets        keyword inputs; loss(output, *targets) gives a scalar, else the network's own loss counts
  input_rank, distinct_tokens  what you know of the data; training=False bounds the network in evaluation mode
The current folder is searched for it. Network and inputs on the meta device will do: nothing is computed."""

PIPE_WIDTH = 120
"""Columns where the output is no terminal, so that tables stay whole in logs."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 well, 1 something failed, 2 a mistake in what was given, 130 Ctrl-C."""
    # torch.export's own deprecations are none of the user's business.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|copyreg")
    options = make_parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False)
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

    _add_bound(commands)
    _add_plan(commands)

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

    _add_data(commands)

    doctor = commands.add_parser("doctor", help="check what a study needs of this machine")
    doctor.add_argument("--uri", help="the MLflow store")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_bound(commands: Any) -> None:
    bound = commands.add_parser(
        "bound",
        help="print the rank bound of every gradient of a network",
        description="Bound the rank of every gradient of a network before it is trained: of a built-in one, of those "
        "of a study's cells, or of your own.",
        epilog=OWN_MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_network(bound)
    bound.add_argument("--all", action="store_true", help="a row for each matrix, however many layers are alike")
    bound.add_argument("--picture", type=Path, metavar="FILE", help="draw the bounds into a .png, .svg or .pdf file")
    output = bound.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    output.add_argument("--explain", metavar="LAYER", help="print how one bound came about; a part of a name will do")
    bound.set_defaults(command=_bound)


def _add_network(parser: argparse.ArgumentParser) -> None:
    """Options that name a network, its data and its workers."""
    parser.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="a study, for the networks of its cells")
    parser.add_argument("--model", help="a built-in network (default: mlp), or package.module:function for your own")
    parser.add_argument(
        "--data", help="a data set, for shapes and loss: a built-in one (default: digits), or package.module:function"
    )
    parser.add_argument("--batch-size", type=int, help="samples of a step, over all workers (default: 128)")
    parser.add_argument("--workers", type=int, help="workers that average their gradients (default: the study's, or 1)")
    parser.add_argument("--accumulation-steps", type=int, help="backward passes of a step (default: the study's, or 1)")
    _add_set(parser, "a setting of network, data or study, such as model.bottleneck=8; several allowed")


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="print how each gradient of a network would be sent, and what a step would take",
        description="Plan a network before it is trained: a method, a rank and bytes for every parameter, and all "
        "methods side by side; with --bandwidth, predicted seconds, and where one method overtakes another.",
        epilog=OWN_MODEL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_network(plan)
    plan.add_argument("--compressor", default="auto", help="a name, or YAML as studies have it (default: auto)")
    plan.add_argument(
        "--policy", default="none", help="of the ranks, such as '{kind: fixed, rank: 4}' (default: the bounds)"
    )
    plan.add_argument("--bandwidth", help="between nodes, such as 25gbit or 1.5GB/s; plans then go by time, not bytes")
    plan.add_argument("--latency", help="of a message between nodes, such as 20us (default: 0)")
    plan.add_argument("--local-size", type=int, default=1, help="workers of a node (default: 1)")
    plan.add_argument("--local-bandwidth", help="inside a node (default: 100gbit)")
    plan.add_argument("--local-latency", help="of a message inside a node (default: 5us)")
    plan.add_argument("--measure", action="store_true", help="take this machine's speed, not the default one")
    plan.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    plan.set_defaults(command=_plan)


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="list the data sets that are read from files, or fetch one")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="which are there, where their files go, and what is missing")
    listing.set_defaults(command=_data_list)
    fetching = actions.add_parser("fetch", help="get one from the Hugging Face hub; what is there and right is kept")
    fetching.add_argument("name", metavar="NAME", help="the data set, as studies name it")
    fetching.add_argument("--force", action="store_true", help="download and write all of it anew")
    fetching.set_defaults(command=_data_fetch)
    for action in (listing, fetching):
        action.add_argument("--root", type=Path, metavar="FOLDER", help="holds data sets (default: GRADRANK_DATA_ROOT)")


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
    from launch import bound_report
    from launch.bound import Sizes, networks_of

    if options.picture is not None:
        bound_report.check_picture(options.picture)
    sizes = Sizes(options.batch_size, options.workers, options.accumulation_steps)
    networks = networks_of(options.config, options.model, options.data, sizes, options.overrides)
    if options.json:
        print(json.dumps(bound_report.as_json(networks), indent=2))  # noqa: T201
    elif options.explain is not None:
        bound_report.print_paths(networks, options.explain, console)
    else:
        bound_report.print_tables(networks, console, each=options.all)
    if options.picture is not None:
        bound_report.draw(networks, options.picture, each=options.all)
        if not options.json:
            console.print(f"Picture: {options.picture}", highlight=False, soft_wrap=True)
    return 0


def _plan(options: argparse.Namespace, console: Console) -> int:
    from compress import Rates, measure_rates
    from launch import plan_command, plan_report
    from launch.bound import Sizes, networks_of

    question = plan_command.Question(
        plan_command.read_spec("--compressor", options.compressor),
        plan_command.read_spec("--policy", options.policy),
        plan_command.read_links(options.bandwidth, options.latency, options.local_bandwidth, options.local_latency),
        options.local_size,
        measure_rates() if options.measure else Rates(),
    )
    sizes = Sizes(options.batch_size, options.workers, options.accumulation_steps)
    networks = networks_of(options.config, options.model, options.data, sizes, options.overrides)
    plan_command.check_nodes(networks, options.local_size)
    answers = [plan_command.answer(network, question) for network in networks]
    if options.json:
        found = [plan_report.as_json(answer) for answer in answers]
        print(json.dumps({"networks": found} if options.config else found[0], indent=2))  # noqa: T201
        return 0
    for answer in answers:
        plan_report.print_answer(answer, console)
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


def _data_list(options: argparse.Namespace, console: Console) -> int:
    from launch.data_command import list_sets

    list_sets(options.root, console)
    return 0


def _data_fetch(options: argparse.Namespace, console: Console) -> int:
    from launch.data_command import fetch_set

    fetch_set(options.name, options.root, console, anew=options.force)
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

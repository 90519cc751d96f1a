"""`gradrank data`: which data sets are there, and getting those that are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from launch.errors import UserError
from models import DATA, DataError
from models.data.fetching import INSTALL, MISSING, SOURCES, Source, downloaded, fetch, is_installed
from models.data.fetching.rows import Told
from models.data.files import ROOT_VARIABLE, named_root
from models.spelling import nearest

HOW_TO_NAME = f"give the folder that holds the data sets, by --root FOLDER or export {ROOT_VARIABLE}=FOLDER"


def list_sets(root: Path | None, console: Console) -> None:
    """Print each data set of files: where it goes, what is there, and where it can be fetched from.

    Sizes and lines are looked at, not checksums.

    Raises:
        UserError: the root is a file, or in the home folder of no user.
    """
    base = _base(root)
    if base is None:
        console.print(f"root: none is set; {HOW_TO_NAME}", highlight=False, soft_wrap=True)
    else:
        if base.exists() and not base.is_dir():
            raise UserError(f"data list: {base} is no folder; {HOW_TO_NAME}")
        note = "" if base.is_dir() else " (no such folder yet; a fetch makes it)"
        console.print(f"root: {base}{note}", highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1), pad_edge=False)
    table.add_column("data set", no_wrap=True)
    table.add_column("folder under the root", overflow="fold")
    table.add_column("there", overflow="fold")
    table.add_column("fetched from", no_wrap=True)
    for source in SOURCES.values():
        if base is None:
            table.add_row(source.name, source.folders[0], "–", source.repository)
            continue
        folder = source.folder(base)
        table.add_row(source.name, str(folder.relative_to(base)), _state(source, folder), source.repository)
    console.print(table)
    if is_installed():
        console.print("gradrank data fetch NAME gets what is missing.", highlight=False, soft_wrap=True)
    else:
        console.print(f"To fetch, install the package for it: {INSTALL}", highlight=False, soft_wrap=True)


def _base(root: Path | None) -> Path | None:
    try:
        return named_root(root)
    except DataError as error:
        raise UserError(f"data: {error}") from error


def _state(source: Source, folder: Path) -> str:
    faults = source.faults(folder, thorough=False)
    missing = [part for part, fault in faults.items() if fault == MISSING]
    if not faults:
        return "all"
    if len(missing) == len(source.parts):
        return "nothing"
    wrong = [f"{part} {fault}" for part, fault in faults.items() if fault != MISSING]
    return "\n".join(["in part:", *wrong, *([f"{', '.join(missing)} missing"] if missing else [])])


def fetch_set(name: str, root: Path | None, console: Console, *, anew: bool) -> None:
    """Fetch what is missing of a data set, or wrong, and tell what was written and what kept.

    Raises:
        UserError: no such data set, no root, or the data set cannot be had or written.
    """
    source = _source(name)
    base = _base(root)
    if base is None:
        raise UserError(f"data fetch {name}: no root is set; {HOW_TO_NAME}")
    folder = source.folder(base)
    try:
        with _progress() as told:
            outcome = fetch(source, folder, lambda: downloaded(source, folder, anew=anew), told, anew=anew)
    except DataError as error:
        raise UserError(f"data fetch {name}: {error}") from error
    console.print(f"{name}: {folder}", highlight=False, soft_wrap=True)
    for what, parts in (("written", outcome.written), ("kept", outcome.kept)):
        if parts:
            console.print(f"  {what}: {', '.join(parts)}", highlight=False, soft_wrap=True)


def _source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    if name in DATA:
        raise UserError(f"data fetch {name}: {name} has no files to fetch; allowed are {', '.join(SOURCES)}")
    raise UserError(f"data fetch: found {name!r}; allowed are {', '.join(SOURCES)}{nearest(name, SOURCES)}")


@contextmanager
def _progress() -> Iterator[Told]:
    """A bar for each file, drawn from when the first is begun: until then the hub's client draws its own."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def told(what: str, done: int, of: int) -> None:
        bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=of)
        bars.update(tasks[what], completed=done, total=of)

    try:
        yield told
    finally:
        if tasks:  # stopping what was never drawn would print an empty line
            bars.stop()

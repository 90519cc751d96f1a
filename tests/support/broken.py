"""Ways to break files of data sets, and what must come of it."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from models import DATA, DataError

Break = Callable[[Path], object]
"""Breaks something in the folder of a data set."""


def refused(kind: str, root: Path | None, *words: object, length: int | None = 8, fold: int = 0, **settings: object):
    """Loading must fail with a DataError, and nothing else, that says all these words."""
    with pytest.raises(DataError) as error:
        DATA[kind](root=root, **settings).load(fold, length)
    missing = [word for word in words if str(word) not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"


def put(name: str, content: bytes | str) -> Break:
    """Other contents."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def change(name: str, edit: Callable[[bytes], bytes]) -> Break:
    """Contents made of the old ones."""
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def zipped(name: str, edit: Callable[[bytes], bytes] = lambda content: content) -> Break:
    """The gzip file alone, changed."""

    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(edit(gzip.compress(content)))

    return apply


def _replaced(name: str, make: Callable[[Path], object]) -> Break:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


# Nobody may be forbidden to read as root, so files are made unreadable in other ways.
UNREADABLE: dict[str, Callable[[str], Break]] = {
    "missing": lambda name: _replaced(name, lambda path: None),
    "a folder": lambda name: _replaced(name, Path.mkdir),
    "a broken link": lambda name: _replaced(name, lambda path: path.symlink_to("nowhere")),
    "a link to itself": lambda name: _replaced(name, lambda path: path.symlink_to(path.name)),
    "a pipe": lambda name: _replaced(name, os.mkfifo),
}
"""Ways in which a file of this name cannot be read."""

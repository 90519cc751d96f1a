"""A data set on the hub: where it is, where its files go, and what they must be."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.data.fetching.expected import MISSING, Expected, place
from models.data.fetching.rows import Rows

__all__ = ["MISSING", "File", "FileSource", "Source"]


@dataclass(frozen=True)
class Source(ABC):
    """A data set that can be fetched, in parts that are there or not.

    Attributes:
        name: that studies give it.
        repository: on the hub.
        folders: where it may lie under the root, the usual place first.
        configuration: of the repository; None where it has only one.
    """

    name: str
    repository: str
    folders: tuple[str, ...]
    configuration: str | None = None

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, str]:
        """The split that each part comes from."""

    @property
    def contents(self) -> str:
        """The files, for people."""
        return ", ".join(self.parts)

    def folder(self, base: Path) -> Path:
        """Where readers find the files under the root; the usual place while there are none."""
        return next((base / folder for folder in self.folders if (base / folder).is_dir()), base / self.folders[0])

    def faults(self, folder: Path, *, thorough: bool) -> dict[str, str]:
        """What is wrong with each part that is not right: MISSING, or what was found and what is expected.

        Args:
            folder: of the data set.
            thorough: compare checksums too, for which files are read whole.
        """
        found = {part: self.fault(folder, part, thorough=thorough) for part in self.parts}
        return {part: fault for part, fault in found.items() if fault}

    @abstractmethod
    def fault(self, folder: Path, part: str, *, thorough: bool) -> str:
        """What is wrong with one part; empty where nothing is."""

    @abstractmethod
    def write(self, folder: Path, split: str, rows: Rows, wanted: Iterable[str]) -> None:
        """Write the wanted parts of a split.

        Raises:
            DataError: what was fetched is not what is expected, or a file cannot be written.
        """


@dataclass(frozen=True)
class File:
    """A file: the split that it comes from, and what it must be."""

    split: str
    expected: Expected


Encode = Callable[[str, Rows], Iterator[tuple[str, Iterable[bytes]]]]
"""Gives the name of each file of a split, and its contents piece by piece, made as they are read."""


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """A data set of a few files.

    Attributes:
        files: by name.
        encode: makes the files of a split.
    """

    files: Mapping[str, File]
    encode: Encode

    @property
    def parts(self) -> Mapping[str, str]:
        return {name: file.split for name, file in self.files.items()}

    def fault(self, folder: Path, part: str, *, thorough: bool) -> str:
        return self.files[part].expected.fault(folder / part, thorough=thorough)

    def write(self, folder: Path, split: str, rows: Rows, wanted: Iterable[str]) -> None:
        left = set(wanted)
        for name, content in self.encode(split, rows):
            if name in left:
                place(folder / name, content, self.files[name].expected)
                left.remove(name)
            if not left:
                return

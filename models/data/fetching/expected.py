"""What a file must hold to be the right one, and placing one that does."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.data.errors import DataError

MISSING = "missing"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Expected:
    """What is known of a file, unpacked; None where it is not.

    Attributes:
        size: bytes.
        lines: that end in a newline.
        md5: of the contents, in hexadecimal.
    """

    size: int | None = None
    lines: int | None = None
    md5: str | None = None

    def fault(self, path: Path, *, thorough: bool) -> str:
        """What is wrong with a file, or with its `.gz` where that alone is there, as readers take it.

        Args:
            path: of the file.
            thorough: compare the checksum too, for which all is read.

        Returns:
            Nothing where all is well, MISSING, or what was found and what is expected.
        """
        zipped = path.with_name(path.name + ".gz")
        found = zipped if not path.exists() and zipped.exists() else path
        if not found.exists():
            return MISSING
        try:
            if self.size is not None and (size := _unpacked_size(found)) != self.size:
                return f"holds {size:,} bytes; {self.size:,} are expected"
            if self.lines is not None and (lines := sum(chunk.count(b"\n") for chunk in _chunks(found))) != self.lines:
                return f"holds {lines:,} lines; {self.lines:,} are expected"
            if thorough and self.md5 is not None and (md5 := _md5(found)) != self.md5:
                return f"has MD5 {md5}; {self.md5} is expected"
        except (OSError, EOFError, zlib.error) as error:
            return f"cannot be read ({error})"
        return ""


def _unpacked_size(path: Path) -> int:
    if path.suffix != ".gz":
        return path.stat().st_size
    with path.open("rb") as file:  # the last four bytes of a gzip file tell it, modulo 2³²
        file.seek(max(0, path.stat().st_size - 4))
        return int.from_bytes(file.read(), "little")


def _chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _md5(path: Path) -> str:
    content = hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(path):
        content.update(chunk)
    return content.hexdigest()


def place(path: Path, content: Iterable[bytes], expected: Expected) -> None:
    """Write a file under a temporary name, and give it its own once it is whole and right.

    Raises:
        DataError: it is not what is expected, or cannot be written; nothing is left of it, and what had its
            name before is as it was.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.writelines(content)
        if fault := expected.fault(unfinished, thorough=True):
            raise DataError(f"{path}: not written, since what was fetched {fault}")
        unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)

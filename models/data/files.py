"""Files of data sets: where they lie, and how they are read with errors that name them."""

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

from models.data.errors import DataError

ROOT_VARIABLE = "GRADRANK_DATA_ROOT"


def absolute(path: str | Path) -> Path:
    """A path that means the same everywhere: with the home folder in place of `~`.

    Raises:
        DataError: it begins with the `~name` of no user.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"{path}: {error}") from error


def named_root(root: Path | None) -> Path | None:
    """The folder that holds data sets, there or not: the one given, else the one that GRADRANK_DATA_ROOT names.

    Raises:
        DataError: it begins with the `~name` of no user.
    """
    given = root or os.environ.get(ROOT_VARIABLE)
    return absolute(given) if given else None


def data_root(root: Path | None) -> Path:
    """The folder that holds data sets: the one given, else the one that GRADRANK_DATA_ROOT names.

    Raises:
        DataError: neither is there.
    """
    found = named_root(root)
    if found is None:
        raise DataError(
            f"data.root is not set: give the folder that holds the data sets, by --set data.root=FOLDER or "
            f"export {ROOT_VARIABLE}=FOLDER; `gradrank data list` tells what it holds"
        )
    if not is_folder(found):
        raise DataError(f"{found}: data.root is no folder; give the one that holds the data sets")
    return found


def is_folder(path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        DataError: that cannot be told, such as where permissions are missing.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error


def status(path: Path) -> os.stat_result:
    """Size and times of a file.

    Raises:
        DataError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise DataError(f"{path}: is not a regular file, which is expected")
    return found


def find_folder(root: Path | None, name: str, folders: Sequence[str], files: Sequence[str]) -> Path:
    """The folder of a data set under the root.

    Args:
        root: `data.root`.
        name: of the data set, for errors.
        folders: where it may lie under the root, the usual place first.
        files: what it holds, for errors.

    Raises:
        DataError: none of them is there.
    """
    base = data_root(root)
    for folder in folders:
        if is_folder(base / folder):
            return base / folder
    raise DataError(
        f"{base / folders[0]}: no such folder; {name} is expected there, with {', '.join(files)}. Where there is a "
        f"network, `gradrank data fetch {name}` puts them there"
    )


def read_bytes(path: Path) -> bytes:
    """Read a file, or its `.gz` where that alone is there.

    Raises:
        DataError: it is missing, cannot be read, or is a broken gzip file.
    """
    content, found = _as_stored(path)
    try:
        return content if found == path else gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{found}: is not a whole gzip file ({error}); fetch it again") from error


def _as_stored(path: Path) -> tuple[bytes, Path]:
    """The bytes of a file, or of its `.gz` where that alone is there; and which it was."""
    zipped = path.with_name(path.name + ".gz")
    try:
        if not path.exists() and not zipped.exists():
            raise DataError(f"{path}: no such file, nor {zipped.name}")
        found = path if path.exists() else zipped
        status(found)
        return found.read_bytes(), found
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_lines(path: Path) -> list[str]:
    """Read UTF-8 text as lines without their ends.

    Raises:
        DataError: it cannot be read, is empty, or is not UTF-8 text.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text, which is expected ({error.reason} at byte {error.start:,})"
        ) from error
    if "\0" in text:  # as UTF-16 has them, and files that a crash has cut
        raise DataError(f"{path}: is not UTF-8 text, which is expected (NUL at character {text.index(chr(0)):,})")
    if not text.strip():
        raise DataError(f"{path}: holds no text; a line or more is expected")
    # Not splitlines, which cuts at rarer ends too, such as the line separator U+2028.
    return text.removesuffix("\n").split("\n")


def digest_of_files(paths: Sequence[Path]) -> str:
    """A hash of files as they are stored, zipped or not.

    Raises:
        DataError: one cannot be read.
    """
    # Each apart, so that what moves from the end of one to the beginning of the next changes the hash.
    parts = [hashlib.sha256(_as_stored(path)[0]).digest() for path in paths]
    return hashlib.sha256(b"".join(parts)).hexdigest()

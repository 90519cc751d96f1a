"""What is made once of a data set's files: arrays that all processes of a machine share by mapping them."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from models.data.errors import DataError
from models.data.files import absolute

CACHE_VARIABLE = "GRADRANK_CACHE"

_FORMAT = 3
"""To be raised where other contents are made of the same files, so that older ones are not taken."""

_SIZES = "sizes"
"""File of an entry that tells how long its others are."""


def cache_root() -> Path:
    """GRADRANK_CACHE, else `gradrank` in the user's folder of caches; absolute, since paths in it travel to workers.

    Raises:
        DataError: neither it nor a home folder is there.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return absolute(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "gradrank"
    except RuntimeError as error:  # a user without a home, as containers have
        raise DataError(
            f"there is no home folder to cache in; name a folder by export {CACHE_VARIABLE}=FOLDER"
        ) from error


def cached(name: str, key: object, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, now or in an earlier run.

    One whose files are missing or cut short, as full disks and cleaners of old files leave them, is made anew.

    Args:
        name: begins the folder's name.
        key: all that the contents depend on; its `repr` is hashed.
        make: fills an empty folder. Only one process of a machine does; a folder is there whole or not at all.

    Raises:
        DataError: the cache cannot be read or written.
    """
    folder = cache_root() / f"{name}-{hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:24]}"
    try:
        if _is_whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):  # else another process has made it meanwhile
                _fill(folder, make)
    except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
        raise DataError(
            f"{folder}: the cache cannot be written: {getattr(error, 'strerror', None) or error}; name a folder that "
            f"can be, by export {CACHE_VARIABLE}=FOLDER"
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        return (folder / _SIZES).read_bytes() == _sizes(folder)
    except FileNotFoundError:
        return False


def _sizes(folder: Path) -> bytes:
    """Names and lengths of an entry's files."""
    files = sorted(path for path in folder.iterdir() if path.name != _SIZES)
    return "".join(f"{path.name} {path.stat().st_size}\n" for path in files).encode()


def _fill(folder: Path, make: Callable[[Path], None]) -> None:
    for left in folder.parent.glob(f"{folder.name}-unfinished-*"):  # by a process that was killed; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-unfinished-", dir=folder.parent))
    try:
        unfinished.chmod(folder.parent.stat().st_mode & 0o777)  # mkdtemp's is for one user, who may share the cache
        make(unfinished)
        (unfinished / _SIZES).write_bytes(_sizes(unfinished))
        if folder.is_dir():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_cached(path: Path) -> str:
    """Read a text of an entry.

    Raises:
        DataError: it was damaged or deleted after the entry was found.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """What to tell of a file of an entry that cannot be read."""
    return DataError(f"{path}: cannot be read from the cache ({error}); delete {path.parent}, and it is made anew")


class MappedArray:
    """A `.npy` file, mapped into memory when first read; between processes only its path travels."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._array: NDArray[Any] | None = None

    @property
    def array(self) -> NDArray[Any]:
        """The file's array, read-only.

        Raises:
            DataError: the file was damaged or deleted after it was found in the cache.
        """
        if self._array is None:
            try:
                self._array = np.lib.format.open_memmap(self._path, mode="r")
            except (OSError, ValueError) as error:
                raise damaged(self._path, error) from error
        return self._array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_array": None}

"""Fetching what is not there yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.errors import DataError
from models.data.fetching.rows import Rows, Told
from models.data.fetching.source import Source


@dataclass(frozen=True)
class Outcome:
    """What a fetch did.

    Attributes:
        written: parts that were fetched.
        kept: parts that were there and right.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]


def fetch(
    source: Source, folder: Path, load: Callable[[], Mapping[str, Any]], told: Told, *, anew: bool = False
) -> Outcome:
    """Write the parts of a data set that are missing or wrong.

    Args:
        source: the data set.
        folder: where its files go; made where it is not there.
        load: gives a `datasets.Dataset` for each split; called where anything is to be written.
        told: hears how far the writing is.
        anew: write all parts, right or not.

    Raises:
        DataError: it cannot be had, is not what is expected, or cannot be written. Parts that are written by
            then are kept by the next fetch.
    """
    wanted = tuple(source.parts if anew else source.faults(folder, thorough=True))
    if wanted:
        splits = load()
        for split in dict.fromkeys(source.parts[part] for part in wanted):
            if split not in splits:
                raise DataError(f"{source.repository} has the splits {', '.join(splits)}; {split!r} is expected")
            source.write(folder, split, Rows(splits[split], told), [p for p in wanted if source.parts[p] == split])
        # Checksums of what was written are known to be right; this sees what was not written, or is too much.
        for part, fault in source.faults(folder, thorough=False).items():
            raise DataError(f"{folder / part}: {fault}, after all was fetched; remove it and fetch again")
    return Outcome(wanted, tuple(part for part in source.parts if part not in wanted))

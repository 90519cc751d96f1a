"""The rows of one split as the hub has them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from models.data.errors import DataError

Told = Callable[[str, int, int], None]
"""Hears how far the writing is: what is written, rows done, rows of it."""

AT_ONCE = 1000
"""Rows that are in memory together."""


class Rows:
    """A split, read some rows at a time; images come as they are stored, not decoded.

    Args:
        dataset: a `datasets.Dataset`.
        told: hears of each step.
    """

    def __init__(self, dataset: Any, told: Told) -> None:
        import datasets  # an extra, and slow to import

        for name, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self._dataset = dataset
        self._told = told

    def __len__(self) -> int:
        return len(self._dataset)

    def batches(self, what: str, *names: str, start: int = 0, stop: int | None = None) -> Iterator[tuple[Any, ...]]:
        """The values of some columns, a list for each, for at most AT_ONCE rows at a time.

        Args:
            what: is written of them.
            names: of the columns.
            start: first row.
            stop: the row behind the last; None for all.

        Raises:
            DataError: there is no such column, or a row has no value in it.
        """
        self._check(names)
        chosen = self._dataset.select_columns(list(names))
        end = len(self) if stop is None else min(stop, len(self))
        for first in range(start, end, AT_ONCE):
            last = min(first + AT_ONCE, end)
            values = chosen[first:last]
            batch = tuple(values[name] for name in names)
            for name, column in zip(names, batch, strict=True):
                if None in column:
                    raise DataError(f"{what}: row {first + column.index(None):,} of what was fetched has no {name!r}")
            yield batch
            self._told(what, last - start, end - start)

    def class_names(self, column: str) -> list[str]:
        """The names of a column's classes, in the order of their numbers.

        Raises:
            DataError: there is no such column, or its classes have no names.
        """
        self._check((column,))
        names = getattr(self._dataset.features[column], "names", None)
        if not names:
            raise DataError(f"column {column!r} of what was fetched names no classes; a column of classes is expected")
        return list(names)

    def _check(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self._dataset.column_names:
                raise DataError(
                    f"what was fetched has the columns {', '.join(self._dataset.column_names)}; {name!r} is expected"
                )


def stored_bytes(image: Mapping[str, Any]) -> bytes:
    """The file of an image as the hub has it.

    Raises:
        DataError: the hub has only its path.
    """
    content = image["bytes"]
    if not isinstance(content, bytes):
        raise DataError(f"an image that was fetched has no bytes, but the path {image['path']!r}; its file is expected")
    return content

"""Rows of a table of bounds: one a matrix, or one for all layers of a network that are alike."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from compress import RankBound

LONG = 24
"""Matrices above which layers that are alike share a row."""

_NUMBER = re.compile(r"(?<![\w.])\d+(?=\.)|(?<=\.)\d+(?![\w])")
"""A layer's number: a part of a dotted name."""


@dataclass(frozen=True)
class Row:
    """One matrix, or several alike.

    Attributes:
        label: the parameter's name; numbers of layers that share the row as ranges.
        names: of its parameters.
        bound: of the first of them.
        losses: least and largest certified loss among them; None where nothing is certified.
        reason: why, in words.
        dense: bytes of all their gradients.
        at_bound: bytes of all their factors at the bound, nowhere more than dense.
    """

    label: str
    names: tuple[str, ...]
    bound: RankBound
    losses: tuple[float, float] | None
    reason: str
    dense: int
    at_bound: int

    @property
    def share(self) -> float:
        """Of full rank."""
        return self.bound.rank / min(self.bound.shape)

    @property
    def is_lossy(self) -> bool:
        """Whether the linear rank differs from the bound."""
        return self.bound.linear_rank != self.bound.rank


def rows_of(bounds: Mapping[str, RankBound], itemsizes: Mapping[str, int], *, each: bool = False) -> list[Row]:
    """The rows of a network in its order; with `each`, or where there are few, one for each matrix.

    Args:
        bounds: of the network's parameters.
        itemsizes: bytes of a number in each parameter's gradient.
        each: whether every matrix has a row of its own.
    """
    rows = [_row(name, bound, itemsizes[name]) for name, bound in bounds.items()]
    if each or len(rows) <= LONG:
        return rows
    alike: dict[object, list[Row]] = {}
    for row in rows:
        alike.setdefault(_likeness(row, itemsizes[row.names[0]]), []).append(row)
    return [joined for group in alike.values() for joined in _joined(group)]


def _row(name: str, bound: RankBound, itemsize: int) -> Row:
    (m, n), loss = bound.shape, bound.certified_loss
    dense = m * n * itemsize
    factors = bound.rank * (m + n) * itemsize
    losses = None if loss is None else (loss, loss)
    return Row(name, (name,), bound, losses, bound.reason, dense, min(factors, dense))


def _likeness(row: Row, itemsize: int) -> object:
    bound = row.bound
    template = _NUMBER.sub("#", row.label)
    return template, bound.shape, bound.rank, bound.linear_rank, bound.certificate, itemsize, _without_numbers(bound)


def _without_numbers(bound: RankBound) -> str:
    """A reason that is the same in all layers: their numbers as *, and each thing once."""
    if bound.reason.startswith("full: min"):
        return bound.reason.split(";")[0]
    kind, colon, things = bound.reason.partition(": ")
    named = (re.sub(r"\b\d+(?= \(\d+ wide\))", "*", _NUMBER.sub("*", thing)) for thing in things.split(" + "))
    return kind + colon + " + ".join(dict.fromkeys(re.sub(r"^\d+ more$", "more", thing) for thing in named))


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ in layer numbers alone: one if these make up a grid, else split by the first that varies."""
    if len(rows) == 1:
        return list(rows)
    numbers = [[int(number) for number in _NUMBER.findall(row.label)] for row in rows]
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if math.prod(map(len, columns)) != len(rows):
        varies = next(place for place, column in enumerate(columns) if len(column) > 1)
        ordered = sorted(zip(numbers, rows, strict=True), key=lambda pair: pair[0][varies])
        groups = groupby(ordered, key=lambda pair: pair[0][varies])
        return [joined for _, group in groups for joined in _joined([row for _, row in group])]
    ranges = iter(columns)
    first = rows[0]
    losses = [loss for row in rows if row.losses for loss in row.losses]
    return [
        replace(
            first,
            label=_NUMBER.sub(lambda _: _range(next(ranges)), first.label) + f" ×{len(rows)}",
            names=tuple(row.names[0] for row in rows),
            losses=(min(losses), max(losses)) if losses else None,
            reason=_without_numbers(first.bound),
            dense=sum(row.dense for row in rows),
            at_bound=sum(row.at_bound for row in rows),
        )
    ]


def _range(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0…31, or 0,2…30, or 0…4,6…31."""
    steps = {after - before for before, after in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]},{numbers[1]}…{numbers[-1]}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}…{run[-1]}" for run in runs)

"""What is known of a tensor: which of its axes hold features, and the space of their rows.

A tensor's entries lie on *axes* in row-major order, finer than those of its shape: a view only groups them
anew, so `(batch, time, heads · width)` and `(batch, time, heads, width)` are one value. An axis has a role:

- `FEATURE`: the entries of a row; at most one axis has it;
- `PIECE`: each index has terms of its own (the heads of attention, the steps of a recurrence);
- `ROW`: all indices share the terms (samples, positions).

A value without a FEATURE axis is known along no axis: any that is asked for holds all there is.
"""

import math
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from compress.bounds.spaces import Terms


class Role(Enum):
    FEATURE = "feature"
    PIECE = "piece"
    ROW = "row"


class Kind(Enum):
    KNOWN = "known"
    ANY = "any"  # whatever axis is asked for, nothing is known of it
    ZERO = "zero"
    UNIFORM = "uniform"  # one number in every entry; alike on all workers unless its name is ("local", ...)


@dataclass(frozen=True)
class Axis:
    """`key` names the axis: rows of two values are the same where their axes have equal keys."""

    key: Hashable
    size: int
    role: Role = Role.ROW


Shape = Sequence[int]
Groups = list[list[Axis]]
Parts = Any
"""An array of `Terms`, one for each index of the PIECE axes; numpy knows no type for such arrays."""
MOST_PIECES = 1024
"""Indices of an axis that may each have terms of their own."""


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of a tensor.

    Attributes:
        axes: in row-major order; those of size 1 are left out, unless features are on them.
        kind: whether there are terms.
        parts: the terms, one entry for each index of the PIECE axes in their order; `parts.shape` is their sizes.
        name: for `ANY`: which tensor it is; for `UNIFORM`: which number, None where nobody knows.
            (("times", a, b) is a times b.)
        height: an upper limit, in one backward pass, on the rank of the matrix that has the ROW axes as rows, and
            the pieces side by side; for `ANY`, whichever axis is asked for.
        balanced: keys of axes over which all entries sum to zero, for each index of the other axes.
        slack: how far, relative to a product of norms, the value may be from the terms given (see `leaky`).
        proven: whether the slack is certain, rather than typical.
        stochastic: keys of axes along which the entries sum to one, for each index of the other axes.
        label: in words, what made it.
    """

    axes: tuple[Axis, ...]
    kind: Kind
    height: int
    label: str
    parts: Parts = field(default_factory=lambda: np.empty((), dtype=object))
    name: Hashable = None
    balanced: frozenset[Hashable] = frozenset()
    slack: float = 0.0
    proven: bool = True
    stochastic: frozenset[Hashable] = frozenset()

    @property
    def rows(self) -> int:
        return math.prod(axis.size for axis in self.axes if axis.role is not Role.FEATURE)

    @property
    def stacked(self) -> int:
        """An upper limit on the rank of all rows, those of all pieces on top of each other."""
        return min(self.rows, self.height * int(self.parts.size))

    @property
    def feature(self) -> Axis | None:
        return next((axis for axis in self.axes if axis.role is Role.FEATURE), None)

    @property
    def width(self) -> int:
        return self.feature.size if self.feature is not None else 1

    def terms(self) -> Iterator[Terms]:
        """The terms of every piece."""
        if self.kind is Kind.KNOWN:
            yield from self.parts.ravel()

    def mapped(self, change: Any, axes: Sequence[Axis] | None = None, **changes: Any) -> "Value":
        """With `change(terms, index)` for the terms of each piece."""
        parts = np.empty(self.parts.shape, dtype=object)
        for index in np.ndindex(self.parts.shape):
            parts[index] = change(self.parts[index], index)
        return replace(self, axes=tuple(axes) if axes is not None else self.axes, parts=parts, **changes)


ONE = "one"
"""The name of a `UNIFORM` value whose number is one."""


def times(name: Hashable, factor: float) -> Hashable:
    """The name of a number times what has a name: equal names must have equal entries."""
    before, bare = factored(name)
    if not math.isfinite(factor * before) or factor * before == 0:
        return ("times", 1.0, ("number", repr(factor), name))
    return ("times", factor * before, bare) if factor * before != 1 else bare


def factored(name: Hashable) -> tuple[float, Hashable]:
    """The number in a name, and the rest of it."""
    return (float(name[1]), name[2]) if isinstance(name, tuple) and name[:1] == ("times",) else (1.0, name)


def varies(value: "Value") -> bool:
    """Whether a `UNIFORM` value differs between workers and backward passes."""
    bare = factored(value.name)[1]
    return isinstance(bare, tuple) and bare[:1] == ("local",)


def sizes(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    return [Axis(("part", axis.key, tuple(sizes), i), size, axis.role) for i, size in enumerate(sizes)]


def less_constants(value: Value, over: Collection[Hashable]) -> Value:
    """What is left of a sum of the rows over the axes `over`, with weights that sum to zero.

    Constants vanish, if they are alike along those axes: pieces may have different ones.
    """
    pieces = [axis.key for axis in value.axes if axis.role is Role.PIECE]
    mine = [i for i, key in enumerate(pieces) if key in over]
    parts = value.parts.copy()
    moved = np.moveaxis(parts, mine, range(-len(mine), 0))
    for index in np.ndindex(moved.shape[: moved.ndim - len(mine)]):
        inner = [(*index, *i) for i in np.ndindex(moved.shape[moved.ndim - len(mine) :])]
        constants = [{c: g for c, g in moved[i].items() if c.constant} for i in inner]
        if all(constant == constants[0] for constant in constants):
            for i in inner:
                moved[i] = {c: g for c, g in moved[i].items() if not c.constant}
    return replace(value, parts=parts)

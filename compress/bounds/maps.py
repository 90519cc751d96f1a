"""The linear maps that the rows of a network pass through: its weights, and fixed rearrangements.

A map takes a row of `rows` entries to one of `columns`: x ↦ x M, M of shape (rows, columns). It knows how to
write M down for given weights, be they the network's own or drawn at random from a finite field.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compress.bounds.field import Matrix


class Weights(Protocol):
    """Where maps take their entries from."""

    def parameter(self, name: str) -> Matrix:
        """A parameter in its own shape."""
        ...

    def unknown(self, key: Hashable, shape: tuple[int, ...]) -> Matrix:
        """A matrix that the network computes in a way nobody follows; alike whenever asked for by one key."""
        ...

    def number(self, value: float) -> float:
        """A number of the network."""
        ...

    def inverse(self, matrix: Matrix) -> Matrix:
        """One over each entry."""
        ...

    def product(self, left: Matrix, right: Matrix) -> Matrix:
        """The product of two matrices."""
        ...

    def reduced(self, matrix: Matrix) -> Matrix:
        """Sums and products of entries, as entries."""
        ...


@dataclass(frozen=True)
class Map:
    """`generic` maps have the highest rank their shape allows, before and after any other such map."""

    rows: int
    columns: int

    generic = False
    """Whether rank(X M) = min(rank X, columns) for generic weights, whatever X is."""
    local = False
    """Whether it differs between workers and between backward passes."""
    known = True
    """Whether the weights alone give it."""

    dense = True
    """Whether applying it takes rows × columns multiplications."""

    def matrix(self, weights: Weights) -> Matrix:
        """The map written down, (rows, columns)."""
        return self.apply(np.eye(self.rows), weights)

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        """Rows x through the map: x M."""
        return weights.product(x, self.matrix(weights))

    @property
    def limit(self) -> int:
        """The most dimensions it lets through."""
        return min(self.rows, self.columns)

    @property
    def work(self) -> int:
        """Multiplications for each row."""
        return self.rows * self.columns if self.dense else self.columns


@dataclass(frozen=True)
class Linear(Map):
    """A parameter of two axes, its first axis out and its second in; the other way where `transposed`."""

    name: str
    transposed: bool = False

    generic = True

    def matrix(self, weights: Weights) -> Matrix:
        stored = weights.parameter(self.name).reshape(-1, self.rows if not self.transposed else self.columns)
        return stored if self.transposed else stored.T


@dataclass(frozen=True)
class Kernel(Map):
    """One offset of a convolution kernel, for one group: input channels to output channels, or back.

    `swapped` kernels, those of transposed convolutions, keep their input channels first.
    """

    name: str
    offset: int
    group: int
    groups: int
    transposed: bool = False
    swapped: bool = False

    generic = True

    def matrix(self, weights: Weights) -> Matrix:
        stored = weights.parameter(self.name)
        flat = stored.reshape(stored.shape[0], stored.shape[1], -1)
        share = flat.shape[0] // self.groups
        block = flat[self.group * share : (self.group + 1) * share, :, self.offset]
        return block if self.transposed != self.swapped else block.T


@dataclass(frozen=True)
class Row(Map):
    """A parameter as one row: what a bias adds to every row."""

    name: str

    generic = True

    def matrix(self, weights: Weights) -> Matrix:
        return weights.parameter(self.name).reshape(1, -1)


@dataclass(frozen=True)
class Unknown(Map):
    """A matrix computed by the network in a way that is not followed."""

    key: Hashable
    diagonal: bool = False
    local: bool = False

    known = False

    @property
    def generic(self) -> bool:  # type: ignore[override]
        return not self.diagonal

    @property
    def dense(self) -> bool:  # type: ignore[override]
        return not self.diagonal

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        if self.diagonal:
            return weights.reduced(x * weights.unknown(self.key, (self.rows,)))
        return weights.product(x, weights.unknown(self.key, (self.rows, self.columns)))


@dataclass(frozen=True)
class Diagonal(Map):
    """Each entry times that of a parameter, or divided by it."""

    name: str
    inverted: bool = False

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        entries = weights.parameter(self.name).reshape(-1)
        return weights.reduced(x * (weights.inverse(entries) if self.inverted else entries))


@dataclass(frozen=True)
class Scale(Map):
    """Every entry times one number."""

    factor: float

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        return weights.reduced(x * weights.number(self.factor))


@dataclass(frozen=True)
class Select(Map):
    """The entries start, start + step, … of a row."""

    start: int
    step: int = 1

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        return x[:, self.start + self.step * np.arange(self.columns)]


@dataclass(frozen=True)
class Embed(Map):
    """A row put at the entries start, start + step, … of a wider one; zeros elsewhere."""

    start: int
    step: int = 1

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        found = np.zeros((len(x), self.columns))
        found[:, self.start + self.step * np.arange(self.rows)] = x
        return found


@dataclass(frozen=True)
class Centre(Map):
    """Each row less its mean: one dimension, that of equal entries, is lost."""

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        share = weights.inverse(np.full((1, 1), float(self.rows)))
        mean = weights.reduced(weights.reduced(x.sum(axis=1, keepdims=True)) * share)
        return weights.reduced(x - mean)

    @property
    def limit(self) -> int:
        return self.rows - 1


@dataclass(frozen=True)
class Total(Map):
    """The sum of a row's entries."""

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        return weights.reduced(x.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Tile(Map):
    """A row repeated: each entry `inner` times on the spot, and all of it as often as fills `columns`."""

    inner: int = 1

    dense = False

    def apply(self, x: Matrix, weights: Weights) -> Matrix:
        outer = self.columns // (self.rows * self.inner)
        return np.tile(np.repeat(x, self.inner, axis=1), (1, outer))

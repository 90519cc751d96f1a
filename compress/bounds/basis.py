"""The subspaces themselves, from the weights that every worker holds."""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress.bounds.field import Matrix
from compress.bounds.spaces import Generator


class Basis(NamedTuple):
    """Orthonormal columns whose spans hold every row, and every column, of a gradient G.

    Attributes:
        inputs: (n, k), G = G · inputs · inputsᵀ; None where weights alone do not give the space.
        adjoint: (m, k), G = adjoint · adjointᵀ · G; None likewise.
    """

    inputs: Tensor | None
    adjoint: Tensor | None


class Actual:
    """The weights of a network, as `maps.Weights`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters

    def parameter(self, name: str) -> Matrix:
        found: Matrix = self._parameters[name].detach().to("cpu", torch.float64).numpy()
        return found

    def unknown(self, key: Hashable, shape: tuple[int, ...]) -> Matrix:
        raise KeyError(key)

    def number(self, value: float) -> float:
        return value

    def inverse(self, matrix: Matrix) -> Matrix:
        return 1 / matrix

    def product(self, left: Matrix, right: Matrix) -> Matrix:
        return left @ right

    def reduced(self, matrix: Matrix) -> Matrix:
        return matrix


def orthonormal(
    generators: Iterable[Generator], dimension: int, width: int, weights: Actual, like: Tensor
) -> Tensor | None:
    """An orthonormal basis (width, dimension) of what the generators span; None where weights do not give it."""
    distinct = list(generators)
    if dimension >= width or not distinct or any(not part.known or part.local for part in distinct):
        return None
    rows = np.concatenate([_evaluated(part, weights) for part in distinct])
    _, _, right = np.linalg.svd(rows, full_matrices=len(rows) < dimension)
    return torch.from_numpy(np.ascontiguousarray(right[:dimension].T)).to(like.device, like.dtype)


def _evaluated(generator: Generator, weights: Actual) -> Matrix:
    """Rows that span the generator's: from its narrowest point on, as all there is at that point."""
    values: dict[int, Matrix] = {}
    start = _narrowest(generator)
    if start is not None:
        values[start.index] = np.eye(start.width)
    pending = [generator]
    while pending:
        part = pending[-1]
        missing = [below for below in part.parts if below.index not in values]
        if missing and part.index not in values:
            pending += missing
            continue
        pending.pop()
        if part.index not in values:
            values[part.index] = _step(part, [values[below.index] for below in part.parts], weights)
    return values[generator.index]


def _narrowest(generator: Generator) -> Generator | None:
    """A point on the only way from the source that is as wide as the limit of the rank."""
    found, part = None, generator
    while len(part.parts) == 1:
        part = part.parts[0]
        if isinstance(part.map, tuple):
            return found
        if part.width == generator.limit:
            found = part
    return found


def _step(part: Generator, below: list[Matrix], weights: Actual) -> Matrix:
    if part.source is not None:
        if isinstance(part.source, tuple) and part.source[0] == "parameter":
            return weights.parameter(part.source[1]).reshape(-1, part.width)
        return np.eye(part.width)
    if isinstance(part.map, tuple):
        before, after = part.map
        return np.kron(np.eye(before), np.kron(below[0], np.eye(after)))
    if part.map is not None:
        return part.map.apply(below[0], weights)
    total: Matrix = np.sum(below, axis=0)
    return total

"""The subspaces themselves, from the weights that every worker holds."""

from typing import NamedTuple

from torch import Tensor


class Basis(NamedTuple):
    """Orthonormal columns whose spans hold every row, and every column, of a gradient G.

    Attributes:
        inputs: (n, k), G = G · inputs · inputsᵀ; None where weights alone do not give the space.
        adjoint: (m, k), G = adjoint · adjointᵀ · G; None likewise.
    """

    inputs: Tensor | None = None
    adjoint: Tensor | None = None


class Sizes(NamedTuple):
    """Columns of both bases, known without the weights; None where there is no basis."""

    inputs: int | None = None
    adjoint: int | None = None

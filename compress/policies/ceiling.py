"""The highest rank that is worth deciding."""

from compress.layers import ParameterInfo
from compress.policies.base import Situation


def ceiling(matrix: ParameterInfo, situation: Situation) -> int:
    """The architecture's bound, at which nothing is lost; without bounds min(m, n).

    In types of 16 bits min(m, n) too: their roundoff lies outside the bound.
    """
    if situation.bounds is None or matrix.dtype.itemsize < 4:
        return min(matrix.matrix)
    return max(1, min(situation.bounds[matrix.name].rank, *matrix.matrix))

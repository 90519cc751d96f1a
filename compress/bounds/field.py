"""Matrices over a prime field, where ranks are exact.

The rank that a space has for *generic* weights is its rank at weights drawn at random: a minor that is not
the zero polynomial vanishes at a random point with a probability of about one in the field's size (Schwartz
1980, Zippel 1979). In floating point a long product of weights loses that rank to roundoff; in a finite field
nothing is lost.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

PRIME = 2_097_143
"""The largest prime below 2²¹: sums of `_BLOCK` products of two entries stay exact in float64."""

_BLOCK = 2**53 // PRIME**2


def number(value: float) -> int:
    """A float (a whole number times a power of two) as an element of the field."""
    numerator, denominator = float(value).as_integer_ratio()
    if numerator % PRIME == 0 and numerator:  # any other number but zero is right, at random weights
        return 1
    return numerator * pow(denominator, -1, PRIME) % PRIME


def inverse(matrix: Matrix) -> Matrix:
    """The inverse of each entry, none of which may be zero."""
    flat = [pow(int(entry), -1, PRIME) for entry in matrix.ravel()]
    return np.array(flat, dtype=np.float64).reshape(matrix.shape)


def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    """Entries drawn evenly from all but zero."""
    return random.integers(1, PRIME, shape).astype(np.float64)


def product(left: Matrix, right: Matrix) -> Matrix:
    """The matrix product, exact: whole numbers in float64, reduced before they outgrow it."""
    inner = left.shape[1]
    total = np.zeros((left.shape[0], right.shape[1]))
    for start in range(0, inner, _BLOCK):
        total += (left[:, start : start + _BLOCK] @ right[start : start + _BLOCK]) % PRIME
    return total % PRIME


def rank(matrix: Matrix) -> int:
    """The rank, by Gaussian elimination."""
    rest = matrix.copy() if matrix.shape[0] <= matrix.shape[1] else matrix.T.copy()
    found = 0
    for column in range(rest.shape[1]):
        if found == rest.shape[0]:
            break
        candidates = np.flatnonzero(rest[found:, column])
        if not len(candidates):
            continue
        pivot = found + int(candidates[0])
        rest[[found, pivot]] = rest[[pivot, found]]
        rest[found, column:] = rest[found, column:] * pow(int(rest[found, column]), -1, PRIME) % PRIME
        below = rest[found + 1 :, column].copy()
        rest[found + 1 :, column:] = (rest[found + 1 :, column:] - np.outer(below, rest[found, column:])) % PRIME
        found += 1
    return found

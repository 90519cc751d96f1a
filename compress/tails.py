"""What is left of a matrix beyond each rank."""

from collections.abc import Sequence
from itertools import accumulate


def tails(spectrum: Sequence[float], norm: float | None = None) -> list[float]:
    """Σ_{i>r} σ_i² for r = 0, 1, …, len(spectrum).

    Args:
        spectrum: the largest singular values, descending.
        norm: ‖·‖_F, by which others count too that were not found; None where all were found.
    """
    squares = [value**2 for value in spectrum]
    unseen = 0.0 if norm is None else max(0.0, norm**2 - sum(squares))
    return [*accumulate(reversed(squares), initial=unseen)][::-1]  # small ones first, so that none is lost in roundoff


def rank_within(spectrum: Sequence[float], tolerance: float, norm: float | None = None) -> int:
    """The least r with √(Σ_{i>r} σ_i²) ≤ tolerance · ‖·‖_F; len(spectrum) where none of those found will do."""
    left = tails(spectrum, norm)
    return next((rank for rank, tail in enumerate(left) if tail <= tolerance**2 * left[0]), len(spectrum))

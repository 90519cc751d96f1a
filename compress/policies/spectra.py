"""What singular values tell of the ranks that they would need."""

import math
from collections.abc import Sequence

from compress.policies.base import Observation
from compress.tails import tails


def above_noise(seen: Observation, limit: int) -> list[float]:
    """Singular values of G that are more than roundoff, descending, `limit` of them at the most.

    Where not all were found, what ‖G‖_F tells of the others is spread evenly over as many as there may be.
    """
    found = list(seen.spectrum[: min(seen.measured_rank, limit)])
    missing = limit - len(found)
    if missing == 0 or len(seen.spectrum) > seen.measured_rank:
        return found
    rest = math.sqrt(tails(found, seen.gradient_norm)[-1] / missing)
    return found + [min([rest, *found[-1:]])] * missing


def steady_rank(spectrum: Sequence[float], most: float) -> int:
    """The least rank at which error feedback's residual comes to rest at a norm of `most` or less.

    The gradient arrives in every step with the same singular values σ_i, and what is not sent piles up. A
    method that always sends what is largest lets each direction grow to a common level λ: one with σ_i < λ is
    sent every λ/σ_i steps, so that

    - columns a step:  r(λ) = Σ_i min(1, σ_i/λ),
    - residual:        E²(λ) = Σ_{σ_i<λ} (λ − σ_i)(2λ − σ_i)/6, the mean of (jσ_i)² over j = 0, …, λ/σ_i − 1.

    It is exact where λ/σ_i are whole numbers, and within a fifth elsewhere. Solved for λ: E² is a quadratic of λ
    between two singular values. The tail of G beyond r is far less than E, which is why the spectrum of one gradient
    alone asks for too low a rank.

    Args:
        spectrum: singular values, descending.
        most: E.
    """
    waiting, total, squares = 0, 0.0, 0.0  # of the values below λ: how many, Σσ, Σσ²
    values = [value for value in spectrum if value > 0]
    for value in reversed(values):
        if 2 * waiting * value**2 - 3 * value * total + squares > 6 * most**2:
            break
        waiting, total, squares = waiting + 1, total + value, squares + value**2
    if not values:
        return 1
    root = math.sqrt(max(0.0, 9 * total**2 - 8 * waiting * (squares - 6 * most**2)))
    level = (3 * total + root) / (4 * waiting)
    columns = math.ceil(len(values) - waiting + total / level - 1e-9)  # 3.0000000001 are 3
    return min(max(1, columns), len(values))

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


def steady_lags(spectrum: Sequence[float]) -> list[float]:
    """⟨G, E⟩, E error feedback's residual at rest, for r = 0, 1, …, len(spectrum) columns a step.

    It is how far the loss lags behind, to first order and per unit of learning rate, where the weights lack E. At rest,
    as `steady_rank` has it, direction i waits with (λ − σ_i)/2 on average, so that

    - lag:  D(λ) = Σ_{σ_i<λ} σ_i(λ − σ_i)/2,

    at the level λ with r(λ) = r. It is convex: dD/dr = −λ²/2. Nothing comes to rest at r = 0, which is infinity.

    Args:
        spectrum: singular values of the gradient, descending.
    """
    values = [value for value in spectrum if value > 0]
    lags = [0.0] * (len(spectrum) + 1)
    waiting, total, squares = 0, 0.0, 0.0  # of the values below λ: how many, Σσ, Σσ²
    for columns in reversed(range(1, len(values))):  # the fewer columns, the higher λ, the more wait
        while True:
            shared = columns - len(values) + waiting  # columns a step that all who wait share
            if waiting == len(values) or (shared > 0 and total <= shared * values[-1 - waiting]):
                break
            value = values[-1 - waiting]
            waiting, total, squares = waiting + 1, total + value, squares + value**2
        lags[columns] = max(0.0, total / shared * total - squares) / 2
    lags[0] = math.inf if values else 0.0
    return lags

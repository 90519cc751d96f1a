"""The rank of a matrix, measured."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankMeasurement:
    """Measures of rank of one m × n matrix with singular values σ_1 ≥ σ_2 ≥ …

    Attributes:
        numerical: singular values above `tolerance`.
        tolerance: the larger of `noise_floor` and the roundoff of the type, ε: max(m, n)·ε·σ_1, and for types
            of 16 bits, where that would hide everything, 2·ε·‖G‖_F (their products are summed in float32 and
            rounded once).
        paper: singular values above ε·σ_1 (Baker et al. 2024, eq. 4), decomposed in the matrix's own type
            as the paper does; it counts roundoff too.
        stable: ‖G‖_F² / σ_1²; 0 for a zero matrix.
        effective: exp of the entropy of σ / Σσ; 0 for a zero matrix.
        energy99: the fewest singular values that hold 99 % of Σσ².
        singular_values: all of them, descending, float64 on the CPU.
    """

    numerical: int
    tolerance: float
    paper: int
    stable: float
    effective: float
    energy99: int
    singular_values: Tensor


def measure_rank(matrix: Tensor, *, noise_floor: float = 0.0, dtype: torch.dtype | None = None) -> RankMeasurement:
    """Measure the rank of a matrix, decomposed in float64.

    Args:
        matrix: m × n, finite.
        noise_floor: absolute size below which a singular value is known to be roundoff, such as
            ε·‖A‖·‖Δ‖ for a product ΔᵀA, which cancellation can make large beside σ_1.
        dtype: the type that the matrix was computed in, whose roundoff it carries; None means its own.

    Raises:
        ValueError: not two axes, or an entry that is NaN or infinite.
    """
    if matrix.dim() != 2:
        raise ValueError(f"measure_rank takes a matrix of two axes, got shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("measure_rank takes finite matrices, this one holds NaN or infinity")
    singular_values = torch.linalg.svdvals(matrix.detach().to("cpu", torch.float64))
    dtype = dtype or matrix.dtype
    epsilon = torch.finfo(dtype).eps
    largest = float(singular_values[0]) if len(singular_values) else 0.0
    roundoff = max(matrix.shape) * epsilon * largest
    if dtype.itemsize == 2:
        roundoff = min(roundoff, 2 * epsilon * float(singular_values.norm()))
    tolerance = max(noise_floor, roundoff)
    if largest == 0.0:
        return RankMeasurement(0, tolerance, 0, 0.0, 0.0, 0, singular_values)
    energy = singular_values.square()
    shares = singular_values / singular_values.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    held = energy.cumsum(0) / energy.sum()
    return RankMeasurement(
        numerical=int((singular_values > tolerance).sum()),
        tolerance=tolerance,
        paper=_count_above_epsilon(matrix, singular_values, epsilon),
        stable=float(energy.sum() / energy[0]),
        effective=float(torch.tensor(entropy).exp()),
        energy99=min(int((held < 0.99).sum()) + 1, len(singular_values)),
        singular_values=singular_values,
    )


def _count_above_epsilon(matrix: Tensor, singular_values: Tensor, epsilon: float) -> int:
    if matrix.dtype != torch.float64:  # as the paper does, with the roundoff of the decomposition
        singular_values = torch.linalg.svdvals(matrix.detach().to("cpu", torch.float32))
    return int((singular_values > epsilon * singular_values[0]).sum())

"""Measures of rank, from singular values."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankMeasurement:
    """Measures of rank of one m × n matrix G with singular values σ_1 ≥ σ_2 ≥ …

    Attributes:
        numerical: singular values above `tolerance`.
        tolerance: the larger of the noise floor and the roundoff of the type, ε: max(m, n)·ε·σ_1, and for types
            of 16 bits, where that would hide everything, at most 2·ε·‖G‖_F (their products are summed in float32
            and rounded once). Where σ_1 is below the type's normal numbers, whose spacing shrinks no further,
            the smallest of them stands for it. 0 for a zero matrix without a floor.
        paper: singular values above ε·σ_1 (Baker et al. 2024, eq. 4), decomposed in the matrix's own type
            as the paper does; it counts roundoff too. None if a sketch sufficed.
        effective: exp of the entropy of σ / Σσ; 0 for a zero matrix. None if a sketch sufficed.
        stable: ‖G‖_F² / σ_1²; 0 for a zero matrix.
        energy99: the fewest singular values that hold 99 % of Σσ².
        singular_values: those found, descending, float64 on the CPU: all of them, or, if a sketch sufficed, at
            least those above `tolerance`.
        certified: nothing above `tolerance` can have been missed: a sketch's residual proves it, or all
            singular values were found. Else there may be more, which happens only beyond what was `affordable`.
    """

    numerical: int
    tolerance: float
    paper: int | None
    effective: float | None
    stable: float
    energy99: int
    singular_values: Tensor
    certified: bool


@dataclass(frozen=True, eq=False)
class Spectra:
    """Singular values of matrices of one shape, all on the CPU.

    Attributes:
        values: (batch, found), descending, float64, of the matrices times `scales`.
        scales: (batch,), float64, powers of two.
        dtype: whose roundoff the matrices carry.
        shape: m, n of each.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype
    shape: tuple[int, int]

    def tolerances(self, noise_floors: Sequence[float]) -> Tensor:
        """`RankMeasurement.tolerance` times the scale of each matrix: (batch,)."""
        kind = torch.finfo(self.dtype)
        largest = self.values[:, :1].sum(1)  # of no values 0
        relative = max(self.shape) * kind.eps * largest
        if kind.bits <= 16:
            relative = relative.minimum(2 * kind.eps * self.values.norm(dim=1))
        spacing = max(self.shape) * kind.eps * (kind.tiny * self.scales)
        roundoff = relative.maximum(spacing) * (largest > 0)
        return roundoff.maximum(torch.tensor(noise_floors, dtype=torch.float64) * self.scales)

    def measure(
        self, tolerances: Tensor, own: Tensor | None = None, left_out: Tensor | float = 0.0, certified: bool = True
    ) -> list[RankMeasurement]:
        """Turn spectra into measures.

        Args:
            tolerances: (batch,), of scaled matrices.
            own: (batch, min(m, n)), all singular values as the matrices' own type gives them; None where `values`
                are not all.
            left_out: (batch,), Frobenius norm of what `values` leave out.
            certified: whether nothing above the tolerances can be missing.
        """
        nonzero = self.values[:, :1].sum(1) > 0
        tiny = torch.finfo(torch.float64).tiny  # in place of 0, by which is not divided
        energy = self.values.square()
        total = energy.sum(1) + left_out**2
        held = energy.cumsum(1) / total.clamp(min=tiny)[:, None]
        shares = self.values / self.values.sum(1, keepdim=True).clamp(min=tiny)
        effective = torch.special.entr(shares).sum(1).exp() * nonzero
        above = [] if own is None else (own > torch.finfo(self.dtype).eps * own[:, :1]).sum(1).tolist()
        measures = {
            "numerical": (self.values > tolerances[:, None]).sum(1).tolist(),
            "tolerance": (tolerances / self.scales).tolist(),
            "paper": above or [None] * len(self.values),
            "effective": [None] * len(self.values) if own is None else effective.tolist(),
            "stable": (total / energy[:, :1].sum(1).clamp(min=tiny)).tolist(),
            "energy99": (((held < 0.99).sum(1) + 1).clamp(max=self.values.shape[1]) * nonzero).tolist(),
            "singular_values": list(self.values / self.scales[:, None]),
        }
        columns = zip(*measures.values(), strict=True)
        return [RankMeasurement(**dict(zip(measures, row, strict=True)), certified=certified) for row in columns]

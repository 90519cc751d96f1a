"""What an audit records of one matrix in one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compress.policies import Observation


@dataclass(frozen=True)
class AuditRow:
    """One matrix in one audited step. G is the true mean gradient, Ĝ what was delivered.

    M is the mean of gradient plus what error feedback kept; G where nothing was kept.

    Attributes:
        compressed: whether a method other than dense sent it.
        communicated_rank: the rank of the plan, or that which the method chose in this step.
        bound: the architecture's bound, None where unknown.
        measured_rank: singular values of G above `tolerance`; where not `certified`, there may be more.
        tolerance, certified: see `RankMeasurement`.
        noise_floor: the part of the tolerance that comes from the sizes of A and Δ; 0 where they are not seen.
        paper_rank, stable_rank, effective_rank, energy99_rank: see `RankMeasurement`.
        violated: measured_rank exceeds the bound.
        input_rank, adjoint_rank: of the layer's A and Δ, of one worker's rows; None where not measured.
        gradient_norm: ‖G‖_F.
        information_loss: ‖G − Ĝ‖_F / ‖G‖_F. Under error feedback it measures delay, not loss.
        compression_error: ‖M − Ĝ‖_F / ‖M‖_F.
        unavoidable_error: the part of it that no matrix of the communicated rank can avoid (Eckart and Young 1936),
            √(Σ_{i>r} σ_i²) / ‖M‖_F.
        iteration_error: the rest, which the method's iteration lost; the squares of both add up.
        cosine: of the angle between G and Ĝ.
        error_norm: ‖G − Ĝ‖_F.
        input_norm: ‖M‖_F.
        input_error_norm: ‖M − Ĝ‖_F.
        singular_values: of G, descending, those that were found.
        input_singular_values: of M, likewise.
    """

    step: int
    name: str
    m: int
    n: int
    method: str
    compressed: bool
    lossless: bool
    communicated_rank: int
    bound: int | None
    measured_rank: int
    tolerance: float
    certified: bool
    noise_floor: float
    paper_rank: int | None
    stable_rank: float
    effective_rank: float | None
    energy99_rank: int
    violated: bool
    input_rank: int | None
    adjoint_rank: int | None
    gradient_norm: float
    information_loss: float
    compression_error: float
    unavoidable_error: float
    iteration_error: float
    cosine: float
    error_norm: float
    input_norm: float
    input_error_norm: float
    singular_values: list[float]
    input_singular_values: list[float]

    @property
    def observation(self) -> Observation:
        """What policies see of it."""
        return Observation(
            step=self.step,
            rank=self.communicated_rank,
            measured_rank=self.measured_rank,
            gradient_norm=self.gradient_norm,
            spectrum=tuple(self.singular_values),
            input_norm=self.input_norm,
            input_spectrum=tuple(self.input_singular_values),
            compression_error=self.compression_error,
        )


@dataclass(frozen=True)
class AuditedLoss:
    """Losses over all compressed matrices of one step together; 0 where nothing was compressed."""

    information_loss: float
    compression_error: float
    unavoidable_error: float
    iteration_error: float


def audited_loss(rows: Sequence[AuditRow]) -> AuditedLoss:
    """Combine the rows of one step: norms over all compressed matrices, as if they were one."""
    compressed = [row for row in rows if row.compressed]
    together = _norm([row.input_norm for row in compressed])
    return AuditedLoss(
        information_loss=ratio(
            _norm([row.error_norm for row in compressed]), _norm([row.gradient_norm for row in compressed])
        ),
        compression_error=ratio(_norm([row.input_error_norm for row in compressed]), together),
        unavoidable_error=ratio(_norm([row.unavoidable_error * row.input_norm for row in compressed]), together),
        iteration_error=ratio(_norm([row.iteration_error * row.input_norm for row in compressed]), together),
    )


def ratio(numerator: float, denominator: float) -> float:
    """A share; 0 of nothing."""
    return numerator / denominator if denominator > 0 else 0.0


def _norm(parts: Sequence[float]) -> float:
    return float(torch.tensor(parts, dtype=torch.float64).norm()) if parts else 0.0

"""What a policy is: a pure function from what is known of a network's gradients to a rank for each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from compress.bounds import Bounds
from compress.layers import ParameterInfo
from compress.spec import Spec


@dataclass(frozen=True)
class Decision:
    """A rank for one matrix, or None where the policy sets none; and why.

    Attributes:
        rank: the decision.
        reason: in words.
        tolerance: in place of a rank: the method shall choose one in each step, by which the relative error stays
            within this. Only methods that are `tolerant` can.
    """

    rank: int | None
    reason: str
    tolerance: float | None = None


@dataclass(frozen=True)
class Observation:
    """What one audit saw of one matrix; alike on all workers, bit for bit.

    G is the true mean gradient, M the mean of gradient plus what error feedback kept, Ĝ what was delivered.

    Attributes:
        step: the audited one.
        rank: that was communicated.
        measured_rank: of G.
        gradient_norm: ‖G‖_F.
        spectrum: singular values of G that were found, descending; the largest ones at least.
        input_norm: ‖M‖_F.
        input_spectrum: of M; that of G where nothing was kept.
        compression_error: ‖M − Ĝ‖_F / ‖M‖_F.
    """

    step: int
    rank: int
    measured_rank: int
    gradient_norm: float
    spectrum: tuple[float, ...]
    input_norm: float
    input_spectrum: tuple[float, ...]
    compression_error: float


def _factor_bytes(matrix: ParameterInfo, rank: int) -> float:
    """Bytes of a matrix's factors, whatever the method."""
    return float(sum(matrix.matrix) * rank * matrix.dtype.itemsize)


@dataclass(frozen=True)
class Situation:
    """What a policy decides from.

    Attributes:
        matrices: parameters of two axes or more.
        bounds: of the architecture, None where unknown.
        observed: by name, what audits saw, oldest first; empty before the first audit.
        ranks: by name, what was decided last; empty before the first decision.
        bytes_at: bytes that a worker hands to collectives in a step for a matrix at a rank, were it decided.
    """

    matrices: Sequence[ParameterInfo]
    bounds: Bounds | None = None
    observed: Mapping[str, Sequence[Observation]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    bytes_at: Callable[[ParameterInfo, int], float] = _factor_bytes


class Policy(Spec, ABC):
    """Decides ranks. Nothing is sent and nothing is logged."""

    adaptive: ClassVar[bool] = False
    """Whether decisions hang on audits, so that the plan is made anew after each."""

    @abstractmethod
    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        """Give every matrix a decision; the same situation gives the same answer on every worker.

        Raises:
            ValueError: the policy needs what the situation has not, such as bounds.
        """

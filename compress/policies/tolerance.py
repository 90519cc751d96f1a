"""The smallest rank at which the compression error was seen to stay within a tolerance."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compress.policies.base import Decision, Observation, Policy, Situation
from compress.policies.ceiling import ceiling
from compress.policies.spectra import above_noise, steady_rank
from compress.tails import rank_within


class TolerancePolicy(Policy):
    """Keep ‖M − Ĝ‖_F / ‖M‖_F under τ in most steps, at as low a rank as audits allow.

    Before the first audit the architecture's bound, at which nothing is lost. (A certified loss of the bounds is
    relative to ‖A‖·‖Δ‖, never to ‖G‖, so no lower rank is certain.) After each audit, of a matrix at rank r:

    1. *wanted* is the largest `steady_rank` of the last `window` audits for E = margin·τ·‖G‖_F, since error
       feedback's residual, and M with it, grows with what a rank leaves out.
    2. At an error above √margin·τ, halfway to τ, the rank rises to r + 1 or more, and to what M's spectrum asks for.
    3. To wanted it rises at once. It falls by a quarter of itself at the most, and not while any of the last
       `patience` audits was as bad as in 2: so that falls which fail spoil one in `patience` intervals or fewer.

    Measured, not proven: between audits gradients may change.

    Attributes:
        tolerance: τ; at 0 the rank stays at the bound.
        margin: what part of τ is aimed at.
        window: audits whose largest demand counts.
        patience: audits without a large error that must go before a fall.
    """

    kind: Literal["tolerance"] = "tolerance"
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.05
    margin: Annotated[float, Field(gt=0, le=1)] = 0.5
    window: Annotated[int, Field(ge=1)] = 4
    patience: Annotated[int, Field(ge=1)] = 20

    adaptive: ClassVar[bool] = True

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        decisions = {}
        for matrix in situation.matrices:
            most = ceiling(matrix, situation)
            seen = situation.observed.get(matrix.name, ())
            if self.tolerance == 0 or not seen:
                decisions[matrix.name] = Decision(most, f"rank {most} until an audit allows less")
            else:
                now = min(situation.ranks.get(matrix.name, most), most)
                rank, reason = self._next(now, most, seen)
                decisions[matrix.name] = Decision(rank, f"rank {rank} for an error within {self.tolerance:g}: {reason}")
        return decisions

    def _next(self, now: int, most: int, seen: Sequence[Observation]) -> tuple[int, str]:
        target = self.margin * self.tolerance
        wanted = max(
            steady_rank(above_noise(audit, most), target * audit.gradient_norm) for audit in seen[-self.window :]
        )
        reason = f"step {seen[-1].step} needed {wanted}"
        if self._is_bad(seen[-1]):
            within = rank_within(seen[-1].input_spectrum, target, seen[-1].input_norm)
            wanted, reason = max(wanted, now + 1, within), f"{seen[-1].compression_error:.2g} at step {seen[-1].step}"
        if wanted >= now:
            return min(wanted, most), reason
        if any(self._is_bad(audit) for audit in seen[-self.patience :]):
            return now, f"{reason}, and an error was large less than {self.patience} audits ago"
        return max(wanted, now - math.ceil(now / 4)), reason

    def _is_bad(self, audit: Observation) -> bool:
        return audit.compression_error > math.sqrt(self.margin) * self.tolerance

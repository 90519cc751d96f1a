"""The rank that audits measure."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from compress.policies.base import Decision, Observation, Policy, Situation
from compress.policies.ceiling import ceiling


class AuditedPolicy(Policy):
    """Follow the measured rank of the true mean gradient: up at once, down after `patience` audits.

    Before the first audit the bound, or min(m, n) without bounds. After it, with w = measured rank + slack:
    r ← w where w > r; else, where the last `patience` audits all have w < r, r ← the largest of them.

    Attributes:
        slack: ranks beyond the measured one; they end at the bound, at which nothing is lost anyway.
        patience: audits that must agree on a lower rank.
    """

    kind: Literal["audited"] = "audited"
    slack: Annotated[int, Field(ge=0)] = 1
    patience: Annotated[int, Field(ge=1)] = 3

    adaptive: ClassVar[bool] = True

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        decisions = {}
        for matrix in situation.matrices:
            most = ceiling(matrix, situation)
            recent = situation.observed.get(matrix.name, ())[-self.patience :]
            now = situation.ranks.get(matrix.name, most)
            rank = self._next(now, [self._wanted(audit, most) for audit in recent])
            told = f"measured {recent[-1].measured_rank} at step {recent[-1].step}" if recent else "before any audit"
            decisions[matrix.name] = Decision(min(rank, *matrix.matrix), f"rank {rank}, {told}")
        return decisions

    def _wanted(self, audit: Observation, most: int) -> int:
        # A measured rank above the bound (autocast, or a loss that was not traced) counts nevertheless.
        return max(1, audit.measured_rank, min(audit.measured_rank + self.slack, most))

    def _next(self, now: int, wanted: Sequence[int]) -> int:
        if not wanted or wanted[-1] > now:
            return wanted[-1] if wanted else now
        return min(now, max(wanted)) if len(wanted) == self.patience else now

"""The rank that the architecture bounds the gradient's by."""

from collections.abc import Mapping
from typing import Literal

from compress.policies.base import Decision, Policy, Situation


class BoundPolicy(Policy):
    """The architecture's bound, plus `offset`; with `linear`, the bound were every Leaky-ReLU linear."""

    kind: Literal["bound"] = "bound"
    offset: int = 0
    linear: bool = False

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        if situation.bounds is None:
            raise ValueError(
                "policy 'bound' needs bounds; call compress.rank_bounds(model, args, loss=…, targets=…) before "
                "wrapping the model, and pass bounds="
            )
        decisions = {}
        for matrix in situation.matrices:
            bound = situation.bounds[matrix.name]
            limit, word = (bound.linear_rank, "linear rank") if self.linear else (bound.rank, "bound")
            rank = min(max(1, limit + self.offset), *matrix.matrix)
            shift = f" {self.offset:+d}" if self.offset else ""
            decisions[matrix.name] = Decision(rank, f"{word} {limit}{shift} ({bound.reason})")
        return decisions

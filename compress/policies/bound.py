"""The rank that the architecture bounds the gradient's by."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from compress.policies.base import Decision, Policy, Situation


class BoundPolicy(Policy):
    """r = ⌈fraction · (bound + offset)⌉, at least 1 and at most `cap`.

    Attributes:
        offset: added to the bound.
        linear: take the bound as it were if every activation were a multiple of its input (`linear_rank`).
        fraction: of it.
        cap: the highest rank, None for none.
    """

    kind: Literal["bound"] = "bound"
    offset: int = 0
    linear: bool = False
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    cap: Annotated[int, Field(ge=1)] | None = None

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
            share = math.ceil(self.fraction * (limit + self.offset) - 1e-9)  # 0.28 · 25 is a little more than 7
            highest = [] if self.cap is None else [self.cap]
            rank = min(max(1, share), *matrix.matrix, *highest)
            decisions[matrix.name] = Decision(rank, f"{word} {limit}{self._told()} ({bound.reason})")
        return decisions

    def _told(self) -> str:
        shift = f" {self.offset:+d}" if self.offset else ""
        share = f", {self.fraction:g} of it" if self.fraction < 1 else ""
        return shift + share + (f", at most {self.cap}" if self.cap is not None else "")

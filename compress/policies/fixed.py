"""Policies that look at nothing but shapes."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from compress.policies.base import Decision, Policy, Situation


class NonePolicy(Policy):
    """Sets no rank: for methods that have none."""

    kind: Literal["none"] = "none"

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        return {matrix.name: Decision(None, "the policy sets no rank") for matrix in situation.matrices}


class FixedPolicy(Policy):
    """The same rank for every matrix, as PowerSGD is used commonly."""

    kind: Literal["fixed"] = "fixed"
    rank: Annotated[int, Field(ge=1)]

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        reason = f"fixed rank {self.rank}"
        return {matrix.name: Decision(min(self.rank, *matrix.matrix), reason) for matrix in situation.matrices}

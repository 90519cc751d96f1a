"""Policies: which rank each matrix gets. Pure decisions; nothing is sent and nothing is logged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from compress.bounds import Bounds
from compress.layers import ParameterInfo
from compress.spec import Spec, parse


@dataclass(frozen=True)
class Decision:
    """A rank for one matrix, or None where the policy sets none; and why."""

    rank: int | None
    reason: str


class Policy(Spec, ABC):
    """Decides ranks from shapes and bounds."""

    @abstractmethod
    def decide(self, matrices: Sequence[ParameterInfo], bounds: Bounds | None) -> Mapping[str, Decision]:
        """Give every matrix a decision; the same arguments give the same answer on every worker.

        Raises:
            ValueError: the policy needs bounds and there are none.
        """


class NonePolicy(Policy):
    """Sets no rank: for methods that have none."""

    kind: Literal["none"] = "none"

    def decide(self, matrices: Sequence[ParameterInfo], bounds: Bounds | None) -> Mapping[str, Decision]:
        return {matrix.name: Decision(None, "the policy sets no rank") for matrix in matrices}


class FixedPolicy(Policy):
    """The same rank for every matrix, as PowerSGD is used commonly."""

    kind: Literal["fixed"] = "fixed"
    rank: Annotated[int, Field(ge=1)]

    def decide(self, matrices: Sequence[ParameterInfo], bounds: Bounds | None) -> Mapping[str, Decision]:
        return {matrix.name: Decision(min(self.rank, *matrix.matrix), f"fixed rank {self.rank}") for matrix in matrices}


class BoundPolicy(Policy):
    """The architecture's bound, plus `offset`; with `linear`, the bound were every Leaky-ReLU linear."""

    kind: Literal["bound"] = "bound"
    offset: int = 0
    linear: bool = False

    def decide(self, matrices: Sequence[ParameterInfo], bounds: Bounds | None) -> Mapping[str, Decision]:
        if bounds is None:
            raise ValueError(
                "policy 'bound' needs bounds; call compress.rank_bounds(model, args, loss=…, targets=…) before "
                "wrapping the model, and pass bounds="
            )
        decisions = {}
        for matrix in matrices:
            bound = bounds[matrix.name]
            limit, word = (bound.linear_rank, "linear rank") if self.linear else (bound.rank, "bound")
            rank = min(max(1, limit + self.offset), *matrix.matrix)
            shift = f" {self.offset:+d}" if self.offset else ""
            decisions[matrix.name] = Decision(rank, f"{word} {limit}{shift} ({bound.reason})")
        return decisions


POLICIES: dict[str, type[Policy]] = {"none": NonePolicy, "fixed": FixedPolicy, "bound": BoundPolicy}
"""Every policy that a study file can name."""


def make_policy(spec: str | Mapping[str, Any] | Policy) -> Policy:
    """Read a policy's name or mapping.

    Raises:
        ValueError: it is unknown, or a field is wrong.
    """
    return parse(spec, POLICIES, Policy, "policy")

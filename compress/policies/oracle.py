"""The yardstick: the rank that each step's true mean gradient needs."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from compress.policies.base import Decision, Policy, Situation


class OraclePolicy(Policy):
    """In every step the least r with √(Σ_{i>r} σ_i²) ≤ τ·‖M‖_F, σ_i of the mean M of gradient plus residual.

    It decides no rank beforehand but hands τ on; compressor `svd`, which averages densely, chooses by it. No method
    that sends r columns of M can do with fewer (Eckart and Young 1936).

    Attributes:
        tolerance: τ.
    """

    kind: Literal["oracle"] = "oracle"
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.05

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        reason = f"each step's least rank for an error within {self.tolerance:g}"
        return {matrix.name: Decision(None, reason, self.tolerance) for matrix in situation.matrices}

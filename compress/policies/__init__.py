"""Policies: which rank each matrix gets."""

from collections.abc import Mapping
from typing import Any

from compress.policies.base import Decision, Observation, Policy, Situation
from compress.policies.bound import BoundPolicy
from compress.policies.fixed import FixedPolicy, NonePolicy
from compress.spec import parse

POLICIES: dict[str, type[Policy]] = {"none": NonePolicy, "fixed": FixedPolicy, "bound": BoundPolicy}
"""Every policy that a study file can name."""


def make_policy(spec: str | Mapping[str, Any] | Policy) -> Policy:
    """Read a policy's name or mapping.

    Raises:
        ValueError: it is unknown, or a field is wrong.
    """
    return parse(spec, POLICIES, Policy, "policy")


__all__ = [
    "POLICIES",
    "BoundPolicy",
    "Decision",
    "FixedPolicy",
    "NonePolicy",
    "Observation",
    "Policy",
    "Situation",
    "make_policy",
]

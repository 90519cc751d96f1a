"""Policies: which rank each matrix gets."""

from collections.abc import Mapping
from typing import Any

from compress.policies.audited import AuditedPolicy
from compress.policies.base import Decision, Observation, Policy, Situation
from compress.policies.bound import BoundPolicy
from compress.policies.budget import BudgetPolicy
from compress.policies.fixed import FixedPolicy, NonePolicy
from compress.policies.oracle import OraclePolicy
from compress.policies.tolerance import TolerancePolicy
from compress.spec import parse

POLICIES: dict[str, type[Policy]] = {
    "none": NonePolicy,
    "fixed": FixedPolicy,
    "bound": BoundPolicy,
    "audited": AuditedPolicy,
    "tolerance": TolerancePolicy,
    "budget": BudgetPolicy,
    "oracle": OraclePolicy,
}
"""Every policy that a study file can name."""


def make_policy(spec: str | Mapping[str, Any] | Policy) -> Policy:
    """Read a policy's name or mapping.

    Raises:
        ValueError: it is unknown, or a field is wrong.
    """
    return parse(spec, POLICIES, Policy, "policy")


__all__ = [
    "POLICIES",
    "AuditedPolicy",
    "BoundPolicy",
    "BudgetPolicy",
    "Decision",
    "FixedPolicy",
    "NonePolicy",
    "Observation",
    "OraclePolicy",
    "Policy",
    "Situation",
    "TolerancePolicy",
    "make_policy",
]

"""Gradient compression whose rank comes from the network's architecture.

In a DDP script: `rank_bounds` traces the network and bounds the rank of every gradient, `register` lets
a DistributedDataParallel model send no more than that.
"""

from compress.audit import AuditRow, AuditSettings, RankMeasurement, audited_loss, measure_rank
from compress.bounds import Bounds, RankBound, TraceError, rank_bounds
from compress.compressors import COMPRESSORS, DAD, Compressor, Dense, PowerSGD, make_compressor
from compress.hook import register
from compress.plan import Assignment, Plan, make_plan
from compress.policies import POLICIES, BoundPolicy, Decision, FixedPolicy, NonePolicy, Policy, make_policy
from compress.state import CompressionState

__all__ = [
    "COMPRESSORS",
    "DAD",
    "POLICIES",
    "Assignment",
    "AuditRow",
    "AuditSettings",
    "BoundPolicy",
    "Bounds",
    "CompressionState",
    "Compressor",
    "Decision",
    "Dense",
    "FixedPolicy",
    "NonePolicy",
    "Plan",
    "Policy",
    "PowerSGD",
    "RankBound",
    "RankMeasurement",
    "TraceError",
    "audited_loss",
    "make_compressor",
    "make_plan",
    "make_policy",
    "measure_rank",
    "rank_bounds",
    "register",
]

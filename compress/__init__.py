"""Gradient compression whose rank comes from the network's architecture.

In a DDP script: `rank_bounds` traces the network and bounds the rank of every gradient, `register` lets
a DistributedDataParallel model send no more than that.
"""

from compress.audit import (
    AuditRow,
    AuditSettings,
    BrokenBoundError,
    RankMeasurement,
    audited_loss,
    measure_rank,
    measure_ranks,
)
from compress.bounds import Bounds, RankBound, TraceError, rank_bounds
from compress.candidates import Auto
from compress.compressors import (
    BF16,
    COMPRESSORS,
    DAD,
    FP16,
    SVD,
    Compressor,
    Dense,
    PowerSGD,
    RankDAD,
    Subspace,
    TopK,
    TorchPowerSGD,
    make_compressor,
)
from compress.cost import Cost, Network, Rates, measure_rates, predict
from compress.hook import register
from compress.plan import Assignment, Plan
from compress.planner import make_plan
from compress.policies import (
    POLICIES,
    AuditedPolicy,
    BoundPolicy,
    BudgetPolicy,
    Decision,
    FixedPolicy,
    NonePolicy,
    Observation,
    OraclePolicy,
    Policy,
    Situation,
    TolerancePolicy,
    make_policy,
)
from compress.reshard import reshard
from compress.state import CompressionState

__all__ = [
    "BF16",
    "COMPRESSORS",
    "DAD",
    "FP16",
    "POLICIES",
    "SVD",
    "Assignment",
    "AuditRow",
    "AuditSettings",
    "AuditedPolicy",
    "Auto",
    "BoundPolicy",
    "Bounds",
    "BrokenBoundError",
    "BudgetPolicy",
    "CompressionState",
    "Compressor",
    "Cost",
    "Decision",
    "Dense",
    "FixedPolicy",
    "Network",
    "NonePolicy",
    "Observation",
    "OraclePolicy",
    "Plan",
    "Policy",
    "PowerSGD",
    "RankBound",
    "RankDAD",
    "RankMeasurement",
    "Rates",
    "Situation",
    "Subspace",
    "TolerancePolicy",
    "TopK",
    "TorchPowerSGD",
    "TraceError",
    "audited_loss",
    "make_compressor",
    "make_plan",
    "make_policy",
    "measure_rank",
    "measure_ranks",
    "measure_rates",
    "predict",
    "rank_bounds",
    "register",
    "reshard",
]

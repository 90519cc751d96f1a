"""One DDP communication hook that carries out a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from compress.audit.auditor import AuditSettings
from compress.bounds import Bounds
from compress.layers import describe
from compress.plan import CompressorSpec, Plan, PolicySpec, make_plan
from compress.state import CompressionState


def register(
    model: DistributedDataParallel,
    plan: Plan | None = None,
    *,
    compressor: CompressorSpec | Sequence[CompressorSpec] | None = None,
    policy: PolicySpec = "none",
    bounds: Bounds | None = None,
    audit: AuditSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> CompressionState:
    """Let a DDP model average its gradients by a plan, in place of dense all-reduces.

    Give a plan, or what `make_plan` makes one of. Call it on every worker with the same arguments,
    before the first backward pass.

    Args:
        model: wrapped in DistributedDataParallel; its process group carries the exchange.
        plan: from `make_plan`.
        compressor: without a plan: a name, a mapping or an object, or several candidates.
        policy: without a plan: decides the ranks.
        bounds: without a plan: from `rank_bounds`.
        audit: how often to measure what was true, such as `{"every": 50}`; None for never.
        seed: of the random factors; the same on all workers.

    Returns:
        The state: `plan`, `bytes_sent`, `state_dict()`, `load_state_dict()`, audits.

    Raises:
        ValueError: neither or both of plan and compressor; or what `make_plan` refuses; or a plan made
            for another world size or another network.
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"register takes a model wrapped in DistributedDataParallel, got {type(model).__name__}; "
            "wrap it first: DistributedDataParallel(model)"
        )
    if (plan is None) == (compressor is None):
        raise ValueError("give register either a plan or a compressor (with its policy and bounds)")
    world_size = dist.get_world_size(model.process_group)
    if plan is None:
        assert compressor is not None
        plan = make_plan(model, compressor, policy, bounds=bounds, world_size=world_size)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan is {plan!r}; it must come from make_plan. A compressor goes into compressor=")
    _check(plan, model, world_size)
    state = CompressionState(plan, model, _audit_settings(audit), seed)
    state.attach(model, _hook)
    return state


def _audit_settings(audit: AuditSettings | Mapping[str, Any] | None) -> AuditSettings:
    if isinstance(audit, AuditSettings):
        return audit
    if audit is None:
        return AuditSettings(every=0)
    if not isinstance(audit, Mapping):
        raise ValueError(f"audit is {audit!r}; it must be a mapping such as {{'every': 50}}, AuditSettings or None")
    return AuditSettings.model_validate(audit)


def _check(plan: Plan, model: DistributedDataParallel, world_size: int) -> None:
    if plan.world_size != world_size:
        raise ValueError(
            f"the plan was made for world_size={plan.world_size}, but {world_size} workers average their gradients "
            f"here; call make_plan(..., world_size={world_size})"
        )
    here = {info.name: info.shape for info in describe(model)}
    planned = {name: assignment.info.shape for name, assignment in plan.items()}
    if here != planned:
        odd = sorted(name for name in here.keys() | planned.keys() if here.get(name) != planned.get(name))
        raise ValueError(f"the plan was made for another network; these parameters differ: {', '.join(odd[:5])}")


def _hook(state: CompressionState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    return state.on_bucket(bucket)

"""One DDP communication hook that carries out a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from compress.audit.auditor import Auditor, OnAudit
from compress.audit.settings import AuditSettings
from compress.bounds import Bounds
from compress.candidates import CompressorSpec
from compress.cost import Network
from compress.exchange import Exchange
from compress.peer import PeerState
from compress.plan import Plan
from compress.planner import PolicySpec, make_plan
from compress.state import CompressionState
from compress.two_level import NodeExchange


def register(
    model: DistributedDataParallel,
    plan: Plan | None = None,
    *,
    compressor: CompressorSpec | Sequence[CompressorSpec] | None = None,
    policy: PolicySpec = "none",
    bounds: Bounds | None = None,
    network: Network | None = None,
    audit: AuditSettings | Mapping[str, Any] | None = None,
    on_audit: OnAudit | None = None,
    seed: int = 0,
    grad_scaler: GradScaler | None = None,
    process_group: dist.ProcessGroup | None = None,
    local_group: dist.ProcessGroup | None = None,
) -> CompressionState:
    """Let a DDP model average its gradients by a plan, in place of dense all-reduces.

    Give a plan, or what `make_plan` makes one of. Call it on every worker with the same arguments,
    before the first backward pass.

    Args:
        model: wrapped in DistributedDataParallel.
        plan: from `make_plan`.
        compressor: without a plan: a name, a mapping or an object, or several candidates.
        policy: without a plan: decides the ranks.
        bounds: without a plan: from `rank_bounds`.
        network: without a plan: what candidates, or those of "auto", are chosen by; None for bytes on the wire.
        audit: how often to measure what was true, such as `{"every": 50}`; None for never.
        on_audit: called with the rows of each audited step, on every worker with the same rows.
        seed: of the random factors; the same on all workers.
        grad_scaler: the GradScaler that multiplies the loss, if there is one: what error feedback keeps is then
            kept unscaled.
        process_group: of all workers; None for the model's own.
        local_group: of this node's workers, which have consecutive ranks. Gradients are then averaged densely
            inside the node, and only one worker of each node takes part in the compressed exchange.

    Returns:
        The state: `plan`, `bytes_sent`, `nonfinite_steps`, `change_plan()`, `state_dict()`,
        `load_state_dict()`, `audit_rows()`, `bound_violations`.

    Raises:
        ValueError: neither or both of plan and compressor; or what `make_plan` refuses; or a plan made
            for another world size or another network; or workers that are not ordered by node.
    """
    if not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"register takes a model wrapped in DistributedDataParallel, got {type(model).__name__}; "
            "wrap it first: DistributedDataParallel(model)"
        )
    if (plan is None) == (compressor is None):
        raise ValueError("give register either a plan or a compressor (with its policy and bounds)")
    group = process_group or model.process_group
    world_size = dist.get_world_size(group)
    local_size = dist.get_world_size(local_group) if local_group is not None else 1
    # Before the plan: nodes that are not alike would fail on some workers only, and the others would wait for them.
    exchange = NodeExchange(group, local_group) if local_group is not None else Exchange(group)
    if plan is None:
        assert compressor is not None
        plan = make_plan(
            model, compressor, policy, bounds=bounds, world_size=world_size, local_size=local_size, network=network
        )
    if not isinstance(plan, Plan):
        raise ValueError(f"plan is {plan!r}; it must come from make_plan. A compressor goes into compressor=")
    plan.check(model, world_size, local_size)
    kind = PeerState if plan.whole_buckets else CompressionState
    auditor = Auditor(_audit_settings(audit), Exchange(group), model, on_audit)
    state = kind(plan, model, exchange, auditor, seed, grad_scaler)
    model.register_comm_hook(state, _hook)
    return state


def _audit_settings(audit: AuditSettings | Mapping[str, Any] | None) -> AuditSettings:
    if isinstance(audit, AuditSettings):
        return audit
    if audit is None:
        return AuditSettings(every=0)
    if not isinstance(audit, Mapping):
        raise ValueError(f"audit is {audit!r}; it must be a mapping such as {{'every': 50}}, AuditSettings or None")
    return AuditSettings.model_validate(audit)


def _hook(state: CompressionState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    return state.on_bucket(bucket)

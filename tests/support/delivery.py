"""One run of a case on the workers: what was delivered, and what should have been."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from cases import Case
from contract_nets import Batches, Checkpointed, bounds, build, gradients, true_mean
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from workers import Workers

import compress

STEADY = ("plain", "plain", "plain", "empty")
EVENTS = (*STEADY, "zero", "plain", "one row", "first features", "other features", "plain")
"""One for each step; see `Batches`. Behind the steady ones a warm start may be mere roundoff, and results with it."""


@dataclass(frozen=True)
class Setting:
    """How a case is run.

    Attributes:
        bucket_mb: 1e-3 for many buckets.
        accumulate: backward passes a step.
        eager: launch collectives early and reduce in place, as large networks do.
        ddp: further arguments of DistributedDataParallel.
        wrap: "compiled", "checkpointed", "reentrant", or "" for the network as it is.
        nodes: workers of a node, for a two-level exchange.
        bounds: see `measure`; tracing them takes longer than all the rest.
    """

    bucket_mb: float = 25
    accumulate: int = 1
    eager: bool = False
    dtype: torch.dtype = torch.float64
    ddp: Mapping[str, Any] = field(default_factory=dict)
    wrap: str = ""
    nodes: int = 0
    events: tuple[str, ...] = EVENTS
    bounds: compress.Bounds | None = None


@dataclass
class Delivery:
    """What one worker saw.

    Attributes:
        delivered: gradients by name, of each step.
        errors: ‖delivered − true‖ / ‖true‖ over all parameters, of each step (‖delivered‖ where true is zero).
        owed: ‖Σ delivered + mean residual − Σ true‖ / ‖Σ true‖ in the end.
        residuals: names of parameters with a residual, in the end.
        sent: bytes in all; and those planned, for as many steps.
    """

    delivered: list[dict[str, Tensor]]
    errors: list[float]
    owed: float
    residuals: set[str]
    methods: set[str]
    lossless: bool
    certified_methods: set[str]
    sent: float
    planned: int
    buckets: int
    finite: list[bool]


def deliver(rank: int, case: Case, world_size: int, setting: Setting) -> Delivery:
    """Train a few steps; every parameter moves along the true gradient, so that lossy methods meet the same ones."""
    with hurried() if setting.eager else contextlib.nullcontext():
        return _deliver(rank, case, world_size, setting)


def deliver_all(rank: int, case: Case, world_size: int, settings: Mapping[str, Setting]) -> dict[str, Delivery]:
    """Several settings in one go."""
    return {name: deliver(rank, case, world_size, setting) for name, setting in settings.items()}


def measure(
    workers: Callable[[int], Workers], case: Case, world_size: int, settings: Mapping[str, Setting]
) -> dict[str, list[Delivery]]:
    """By setting: the deliveries of all workers."""
    traced = bounds(case.network, world_size)
    planned = {name: replace(setting, bounds=traced) for name, setting in settings.items()}
    seen = workers(world_size)(deliver_all, case, world_size, planned)
    return {name: [worker[name] for worker in seen] for name in settings}


def _deliver(rank: int, case: Case, world_size: int, setting: Setting) -> Delivery:
    batches = Batches(case.network, world_size, setting.dtype)
    twin = build(case.network, setting.dtype)
    ddp, state = wrap(case, batches, setting)
    buckets = count_buckets(state)
    delivered, errors, finite = [], [], []
    received, expected = zeros(twin), zeros(twin)
    for step, event in enumerate(setting.events):
        indices = list(range(step * setting.accumulate, (step + 1) * setting.accumulate))
        ddp.zero_grad()
        for index in indices:
            with contextlib.nullcontext() if index == indices[-1] else ddp.no_sync():
                batches.loss(ddp, rank, index, event).backward()
        found, true = gradients(ddp), true_mean(twin, batches, indices, event)
        delivered.append(found)
        errors.append(deviation(found, true))
        finite.append(state.finite)
        add(received, found)
        add(expected, true)
        with torch.no_grad():
            for model in (twin, ddp):
                for parameter, gradient in zip(model.parameters(), true.values(), strict=True):
                    parameter -= 0.01 * gradient
    owing = mean_residuals(state)
    add(received, {name: rest.view_as(received[name]) for name, rest in owing.items()})
    return Delivery(
        delivered,
        errors,
        deviation(received, expected),
        set(owing),
        {assignment.method for assignment in state.plan.matrices},
        all(assignment.lossless for assignment in state.plan.values()),
        {assignment.method for assignment in state.plan.matrices if assignment.lossless},
        state.bytes_sent,
        state.plan.bytes * len(setting.events),
        len(buckets),
        finite,
    )


def wrap(
    case: Case, batches: Batches, setting: Setting | None = None, **register: Any
) -> tuple[DistributedDataParallel, compress.CompressionState]:
    """The case's network in a DDP object, with its compressor."""
    setting = setting or Setting()
    model = build(case.network, setting.dtype)
    known = {"bounds": setting.bounds or bounds(case.network, batches.world_size)} if case.bounds else {}
    arguments = {**known, **case.register, **register}
    if setting.wrap == "compiled":
        model = torch.compile(model, backend="aot_eager")
    elif setting.wrap:
        assert isinstance(model, nn.Sequential)
        model = Checkpointed(*model)
        model.reentrant = setting.wrap == "reentrant"
    ddp = DistributedDataParallel(model, bucket_cap_mb=setting.bucket_mb, **setting.ddp)
    if setting.nodes:
        arguments["local_group"] = node_group(setting.nodes)
    return ddp, compress.register(ddp, **arguments)


def node_group(size: int) -> dist.ProcessGroup:
    """The group of this worker's node, for nodes of so many consecutive ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world_size, size)]
    return groups[rank // size]


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Small networks take the ways of large ones."""
    with patch("compress.state.LAUNCH_BYTES", 512), patch("compress.exchange.IN_PLACE_BYTES", 256):
        yield


def count_buckets(state: compress.CompressionState) -> set[int]:
    """A set that fills with the numbers of the buckets that the state gets."""
    seen: set[int] = set()
    original = state.on_bucket

    def counted(bucket):
        seen.add(bucket.index())
        return original(bucket)

    state.on_bucket = counted
    return seen


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}


def add(total: dict[str, Tensor], terms: Mapping[str, Tensor], factor: float = 1.0) -> None:
    """Add up in place, in float64."""
    for name, term in terms.items():
        total[name] += factor * term.to(torch.float64)


def deviation(found: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> float:
    """Relative distance, of the worst parameter, over the mean size of all where a parameter's own is smaller."""
    size = sum(float(tensor.double().square().sum()) for tensor in true.values()) ** 0.5
    floor = 1e-3 * size or 1.0
    return max(
        float((found[name].double() - true[name].double()).norm()) / max(float(true[name].double().norm()), floor)
        for name in true
    )


def mean_residuals(state: compress.CompressionState) -> dict[str, Tensor]:
    """The mean of residuals over all workers, float64, by name."""
    memories = state.state_dict()["memories"]
    residuals = {
        name: memory["residual"].to(torch.float64) for name, memory in memories.items() if "residual" in memory
    }
    for residual in residuals.values():
        dist.all_reduce(residual)
        residual /= dist.get_world_size()
    return residuals


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are the same bit for bit, NaN included."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8))
        for name in first
    )

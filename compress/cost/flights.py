"""Which collectives a plan's payloads travel in: the fusing of `compress.step` and `compress.exchange`, foretold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from compress.compressors.base import Payload
from compress.exchange import IN_PLACE_BYTES, AllReduceMean, Request
from compress.plan import Assignment, Plan
from compress.step import LAUNCH_BYTES

FIRST_BUCKET_MB = 1.0
BUCKET_MB = 25.0
"""DDP's own: its first bucket is small, so that it is soon full."""

_PEER_COLLECTIVES = 3
"""All-reduces that PyTorch's PowerSGD hook issues for a bucket: what it leaves uncompressed, P and Q."""


@dataclass(frozen=True)
class FlightPlan:
    """One collective of a step.

    Attributes:
        collective: which one.
        bytes: that a worker hands over.
        in_place: whether it is reduced where it lies.
    """

    collective: type[Request]
    bytes: int
    in_place: bool = False


@dataclass(frozen=True)
class _Item:
    """One parameter's payload in a round; `follows` says that it lies in its bucket behind the one before."""

    payload: Payload
    dtype: torch.dtype
    follows: bool = False

    @property
    def bytes(self) -> int:
        return self.payload.bytes(self.dtype)


def buckets_of(plan: Plan, bucket_mb: float | None = None) -> list[list[Assignment]]:
    """DDP's buckets from the second step on: the last parameters first, and full once they hold so many MiB.

    Args:
        plan: of all parameters.
        bucket_mb: DDP's `bucket_cap_mb`; None for its default.
    """
    first, others = (FIRST_BUCKET_MB, BUCKET_MB) if bucket_mb is None else (bucket_mb, bucket_mb)
    open_ones: dict[torch.dtype, list[Assignment]] = {}
    sizes: dict[torch.dtype, int] = {}
    limits: dict[torch.dtype, float] = {}
    full = []
    for assignment in reversed(list(plan.values())):
        dtype = assignment.info.dtype
        open_ones.setdefault(dtype, []).append(assignment)
        sizes[dtype] = sizes.get(dtype, 0) + assignment.info.bytes
        if sizes[dtype] >= limits.get(dtype, first) * 2**20:
            full.append(open_ones.pop(dtype))
            sizes[dtype], limits[dtype] = 0, others
    return [*full, *open_ones.values()]


def flights_of(plan: Plan, bucket_mb: float | None = None) -> list[FlightPlan]:
    """All collectives of one step, in the order in which they start.

    The bytes are exact. How many there are is so where gradients become ready in the reverse order of parameters.
    """
    buckets = buckets_of(plan, bucket_mb)
    if plan.whole_buckets:
        return [flight for bucket in buckets for flight in _peer_flights(bucket)]
    found: list[FlightPlan] = []
    waiting: list[_Item] = []
    for bucket in buckets:
        waiting += _first_requests(bucket)
        if sum(item.bytes for item in waiting) >= LAUNCH_BYTES:
            found += _fused(waiting)
            waiting = []
    found += _fused(waiting)
    later = [
        [_Item(payload, assignment.info.dtype) for payload in assignment.fit.payloads[1:]]
        for bucket in buckets
        for assignment in bucket
    ]
    for round_ in zip_longest(*later):
        found += _fused([item for item in round_ if item is not None])
    return found


def _first_requests(bucket: Sequence[Assignment]) -> Iterator[_Item]:
    before = False  # whether what lies before is reduced where it lies too
    for assignment in bucket:
        payload = next(iter(assignment.fit.payloads), None)
        lies = payload is not None and payload.in_place and payload.dtype is None
        if payload is not None:
            yield _Item(payload, assignment.info.dtype, follows=lies and before)
        before = lies


def _fused(items: Sequence[_Item]) -> list[FlightPlan]:
    """One launch: large stretches that are reduced in place, then one collective for each kind and type."""
    runs: list[list[_Item]] = []
    for item in items:
        if item.follows:
            runs[-1].append(item)
        else:
            runs.append([item])
    found, fused = [], dict[tuple[type[Request], torch.dtype], int]()
    for run in runs:
        size = sum(item.bytes for item in run)
        if run[0].payload.in_place and size >= IN_PLACE_BYTES:
            found.append(FlightPlan(AllReduceMean, size, in_place=True))
            continue
        for item in run:
            key = item.payload.collective, item.payload.dtype or item.dtype
            fused[key] = fused.get(key, 0) + item.bytes
    return found + [FlightPlan(collective, size) for (collective, _), size in fused.items()]


def _peer_flights(bucket: Sequence[Assignment]) -> list[FlightPlan]:
    sizes = [0] * _PEER_COLLECTIVES
    for assignment in bucket:
        compressed = assignment.compressor.whole_buckets
        for place, payload in enumerate(assignment.fit.payloads, start=1 if compressed else 0):
            sizes[place] += payload.bytes(assignment.info.dtype)
    return [FlightPlan(AllReduceMean, size) for size in sizes]

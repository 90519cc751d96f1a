"""The exchange: the one place that calls collectives, and counts what is handed to them."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AllReduceMean:
    """Ask for the mean of a tensor over all workers; every worker gives the same shape."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class AllGather:
    """Ask for every worker's tensor, stacked along a new first axis; every worker gives the same shape."""

    tensor: Tensor


Request = AllReduceMean | AllGather


def ring_bytes(collective: type[Request], payload: float, world_size: int) -> float:
    """Bytes that one worker must send on a ring for a payload of so many bytes.

    All-reduce: 2(S−1)/S times the payload; all-gather: S−1 times.
    """
    factor = 2 * (world_size - 1) / world_size if collective is AllReduceMean else world_size - 1
    return factor * payload


@dataclass(eq=False)
class _Flight:
    """One fused collective under way: which requests it serves, and its buffer."""

    collective: type[Request]
    positions: list[int]
    tensors: list[Tensor]
    buffer: Tensor
    work: dist.Work


class Exchange:
    """Carries out requests with as few collectives as possible.

    Attributes:
        bytes: bytes this worker has handed to collectives.
        wire_bytes: bytes this worker must have sent, were every collective a ring.
        seconds: time this worker was blocked in collectives (on GPUs: in launching them).
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.bytes = 0
        self.wire_bytes = 0.0
        self.seconds = 0.0

    def start(self, requests: Sequence[Request]) -> "Pending":
        """Launch one collective for each kind and dtype among the requests; all workers in the same order."""
        started = time.perf_counter()
        groups: dict[tuple[type[Request], torch.dtype, torch.device], list[int]] = defaultdict(list)
        for position, request in enumerate(requests):
            groups[type(request), request.tensor.dtype, request.tensor.device].append(position)
        flights = []
        for (collective, _, _), positions in groups.items():
            tensors = [requests[position].tensor for position in positions]
            payload = torch.cat([tensor.reshape(-1) for tensor in tensors])
            if collective is AllReduceMean:
                # Divided before the sum, as DDP does: in float16 the sum of large gradients would overflow.
                buffer = payload.div_(self.world_size)
                work = dist.all_reduce(buffer, group=self._group, async_op=True)
            else:
                buffer = payload.new_empty(self.world_size, payload.numel())
                work = dist.all_gather_into_tensor(buffer.view(-1), payload, group=self._group, async_op=True)
            size = payload.numel() * payload.element_size()
            self.bytes += size
            self.wire_bytes += ring_bytes(collective, size, self.world_size)
            flights.append(_Flight(collective, positions, tensors, buffer, work))
        self.seconds += time.perf_counter() - started
        return Pending(self, len(requests), flights)

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Start, and wait for the answers."""
        return self.start(requests).wait()


class Pending:
    """Requests under way."""

    def __init__(self, exchange: Exchange, count: int, flights: list[_Flight]) -> None:
        self._exchange = exchange
        self._count = count
        self._flights = flights

    def wait(self) -> list[Tensor]:
        """Block until all are done; return the answers in the order of the requests."""
        started = time.perf_counter()
        answers: dict[int, Tensor] = {}
        world_size = self._exchange.world_size
        for flight in self._flights:
            flight.work.wait()
            parts = torch.split(flight.buffer, [tensor.numel() for tensor in flight.tensors], dim=-1)
            for position, tensor, part in zip(flight.positions, flight.tensors, parts, strict=True):
                shape = tensor.shape if flight.collective is AllReduceMean else (world_size, *tensor.shape)
                answers[position] = part.reshape(shape)
        self._exchange.seconds += time.perf_counter() - started
        return [answers[position] for position in range(self._count)]

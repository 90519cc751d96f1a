"""The exchange: the one place that calls collectives, and counts what is handed to them."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

IN_PLACE_BYTES = 256 * 1024
"""From this size on, copying neighbours in memory into a fused buffer costs more than a collective of their own."""


@dataclass(frozen=True, eq=False)
class AllReduceMean:
    """Ask for the mean of a tensor over all workers; every worker gives the same shape.

    With `in_place` the tensor is given away: its answer may be written over it.
    """

    tensor: Tensor
    in_place: bool = False


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
class Flight:
    """One collective under way: which requests it serves, and the buffer that its answer comes in."""

    collective: type[Request]
    positions: list[int]
    tensors: list[Tensor]
    buffer: Tensor
    work: dist.Work | None
    in_place: bool = False


class Exchange:
    """Carries out requests with as few collectives as possible.

    Attributes:
        group: of the workers whose requests meet here; None for all.
        world_size: how many they are.
        bytes: bytes this worker has handed to collectives.
        wire_bytes: bytes this worker must have sent, were every collective a ring.
        seconds: time this worker was blocked in collectives (on GPUs: in launching them).
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world_size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.bytes = 0
        self.wire_bytes = 0.0
        self.seconds = 0.0

    def start(self, requests: Sequence[Request]) -> "Pending":
        """Launch one collective for each kind and dtype among the requests; all workers in the same order.

        Large tensors that may be overwritten get one each instead, neighbours in memory together.
        """
        started = time.perf_counter()
        fused: dict[tuple[type[Request], torch.dtype, torch.device], list[int]] = defaultdict(list)
        flights = []
        for run in _runs_in_place(requests):
            flights.append(self._reduce([requests[position].tensor for position in run], run, in_place=True))
        taken = {position for flight in flights for position in flight.positions}
        for position, request in enumerate(requests):
            if position not in taken:
                fused[type(request), request.tensor.dtype, request.tensor.device].append(position)
        for (collective, _, _), positions in fused.items():
            tensors = [requests[position].tensor for position in positions]
            launch = self._reduce if collective is AllReduceMean else self._gather
            flights.append(launch(tensors, positions))
        self.seconds += time.perf_counter() - started
        return Pending(self, len(requests), flights)

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Start, and wait for the answers."""
        return self.start(requests).wait()

    def finish(self, flight: Flight) -> None:
        """Wait until the flight's buffer holds its answer."""
        if flight.work is not None:
            flight.work.wait()

    def _reduce(self, tensors: list[Tensor], positions: list[int], in_place: bool = False) -> Flight:
        buffer = _joined(tensors) if in_place else torch.cat([tensor.reshape(-1) for tensor in tensors])
        # Divided before the sum, as DDP does: in float16 the sum of large gradients would overflow.
        work = self._launch_reduce(buffer.div_(self.world_size))
        self.count(AllReduceMean, _bytes([buffer]))
        return Flight(AllReduceMean, positions, tensors, buffer, work, in_place)

    def _gather(self, tensors: list[Tensor], positions: list[int]) -> Flight:
        payload = torch.cat([tensor.reshape(-1) for tensor in tensors])
        buffer = payload.new_empty(self.world_size, payload.numel())
        work = self._launch_gather(buffer, payload)
        self.count(AllGather, _bytes([payload]))
        return Flight(AllGather, positions, tensors, buffer, work)

    def _launch_reduce(self, buffer: Tensor) -> dist.Work | None:
        work: dist.Work | None = dist.all_reduce(buffer, group=self.group, async_op=True)
        return work

    def _launch_gather(self, buffer: Tensor, payload: Tensor) -> dist.Work | None:
        work: dist.Work | None = dist.all_gather_single(buffer.view(-1), payload, group=self.group, async_op=True)
        return work

    def count(self, collective: type[Request], size: int) -> None:
        """Count a payload of so many bytes; also of a peer, which calls collectives itself."""
        self.bytes += size
        self.wire_bytes += ring_bytes(collective, size, self.world_size)


def _runs_in_place(requests: Sequence[Request]) -> list[list[int]]:
    """Positions of tensors that may be overwritten, by runs that lie side by side, large ones alone."""
    offered = [
        position
        for position, request in enumerate(requests)
        if isinstance(request, AllReduceMean) and request.in_place and _is_dense(request.tensor)
    ]
    offered.sort(key=lambda position: requests[position].tensor.data_ptr())
    runs: list[list[int]] = []
    for position in offered:
        tensor, before = requests[position].tensor, requests[runs[-1][-1]].tensor if runs else None
        if before is not None and _touch(before, tensor):
            runs[-1].append(position)
        else:
            runs.append([position])
    # In the order of the requests, which is alike on all workers; that of addresses need not be.
    return sorted(run for run in runs if _bytes([requests[position].tensor for position in run]) >= IN_PLACE_BYTES)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory, in whatever order of its axes."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous() or channels_last


def _touch(before: Tensor, after: Tensor) -> bool:
    return (
        before.dtype == after.dtype
        and before.untyped_storage().data_ptr() == after.untyped_storage().data_ptr()
        and before.data_ptr() + before.numel() * before.element_size() == after.data_ptr()
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors that lie side by side, seen as one."""
    numbers = sum(tensor.numel() for tensor in tensors)
    return tensors[0].as_strided((numbers,), (1,))


class Pending:
    """Requests under way."""

    def __init__(self, exchange: Exchange, count: int, flights: list[Flight]) -> None:
        self._exchange = exchange
        self._count = count
        self._flights = flights

    def wait(self) -> list[Tensor]:
        """Block until all are done; return the answers in the order of the requests."""
        started = time.perf_counter()
        answers: dict[int, Tensor] = {}
        world_size = self._exchange.world_size
        for flight in self._flights:
            self._exchange.finish(flight)
            if flight.in_place:
                answers.update(zip(flight.positions, flight.tensors, strict=True))
                continue
            parts = torch.split(flight.buffer, [tensor.numel() for tensor in flight.tensors], dim=-1)
            for position, tensor, part in zip(flight.positions, flight.tensors, parts, strict=True):
                shape = tensor.shape if flight.collective is AllReduceMean else (world_size, *tensor.shape)
                answers[position] = part.reshape(shape)
        self._exchange.seconds += time.perf_counter() - started
        return [answers[position] for position in range(self._count)]

    def finite(self) -> Tensor:
        """After `wait`: whether all answers are finite; a boolean without axes, on the answers' device.

        Every worker sees the same answers and so comes to the same conclusion.
        """
        verdicts = [is_finite(flight.buffer) for flight in self._flights if flight.buffer.is_floating_point()]
        return torch.stack(verdicts).all() if verdicts else torch.tensor(True)


def is_finite(buffer: Tensor) -> Tensor:
    """Whether all its numbers are finite: a boolean without axes, on its device."""
    if not buffer.numel():
        return torch.tensor(True, device=buffer.device)
    smallest, largest = torch.aminmax(buffer)  # one pass without a copy; NaN comes through
    return torch.isfinite(smallest) & torch.isfinite(largest)

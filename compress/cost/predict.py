"""What one step of a plan will cost: bytes, collectives, and seconds on a network."""

from collections.abc import Mapping
from dataclasses import dataclass

from compress.compressors.base import Payload
from compress.cost.flights import buckets_of, flights_of
from compress.cost.network import Network
from compress.cost.rates import Rates
from compress.exchange import AllReduceMean, ring_bytes
from compress.plan import Assignment, Plan

DDP_PASSES = 2
"""DDP reads every gradient and writes it into a bucket, whatever is sent."""

IN_PLACE_PASSES = 2.3
"""Over a payload that is reduced where it lies: to divide it, and to see that it is finite."""

FUSED_PASSES = 4.3
"""Over another: to join it to others (read, write), and the same."""

GATHERED_PASSES = 1.2
"""Over what an all-gather brings from each worker: to see that it is finite."""


@dataclass(frozen=True)
class ParameterCost:
    """What one parameter adds to a step.

    Attributes:
        bytes: that a worker hands to collectives.
        wire_bytes: that it (of a node, its first) must send on a ring.
        compute: seconds of arithmetic and of copies, DDP's included.
        communication: seconds of sending, without latencies, which collectives share.
    """

    bytes: int
    wire_bytes: float
    compute: float
    communication: float

    @property
    def seconds(self) -> float:
        return self.compute + self.communication


@dataclass(frozen=True)
class Cost:
    """What a step costs beyond the forward and backward passes, if nothing of it overlaps them.

    Attributes:
        parameters: by name.
        bytes: that a worker hands to collectives.
        wire_bytes: that it (of a node, its first) must send on a ring.
        inside_bytes: that it hands to collectives inside its node.
        collectives: between workers, or nodes.
        compute: seconds of arithmetic, copies and book-keeping.
        communication: seconds of collectives, those inside nodes included.
    """

    parameters: Mapping[str, ParameterCost]
    bytes: int
    wire_bytes: float
    inside_bytes: int
    collectives: int
    compute: float
    communication: float

    @property
    def seconds(self) -> float:
        return self.compute + self.communication


def predict(plan: Plan, network: Network, rates: Rates | None = None, *, bucket_mb: float | None = None) -> Cost:
    """Foretell one step.

    Bytes are what `state.exchange` will count, exactly, with the exceptions that docs/cost.md names.

    Args:
        plan: from `make_plan`; it says how many workers there are, and how many to a node.
        network: that they meet on.
        rates: of their machines; None for the defaults.
        bucket_mb: DDP's `bucket_cap_mb`; None for its default.
    """
    rates = rates or Rates()
    flights = flights_of(plan, bucket_mb)
    peers, local = plan.peers, plan.local_size
    parameters = {name: cost_of(assignment, peers, network, rates, local) for name, assignment in plan.items()}
    wire = sum(ring_bytes(flight.collective, flight.bytes, peers) for flight in flights)
    communication = network.sending(wire) + sum(network.waiting(flight.collective, peers) for flight in flights)
    inside_bytes = 0
    if local > 1:
        averaged = [sum(assignment.info.bytes for assignment in bucket) for bucket in buckets_of(plan, bucket_mb)]
        answers = [flight.bytes * (1 if flight.collective is AllReduceMean else peers) for flight in flights]
        communication += sum(network.inside(AllReduceMean, size, local) for size in averaged)
        communication += sum(network.broadcast(size, local) for size in answers)
        inside_bytes = sum(averaged) + sum(answers)
    return Cost(
        parameters,
        sum(flight.bytes for flight in flights),
        wire,
        inside_bytes,
        len(flights),
        sum(cost.compute for cost in parameters.values()) + len(flights) * rates.collective,
        communication,
    )


def cost_of(assignment: Assignment, peers: int, network: Network, rates: Rates, local_size: int = 1) -> ParameterCost:
    """What one parameter adds to a step, beside the latencies that collectives share."""
    info = assignment.info
    compute = rates.matrix + rates.seconds(assignment.work, info.bytes, info.dtype.itemsize, peers)
    compute += DDP_PASSES * info.bytes / rates.memory
    wire = assignment.wire_bytes(peers)
    communication = network.sending(wire)
    for payload in assignment.fit.payloads:
        size = payload.bytes(info.dtype)
        compute += _passes(payload, peers) * size / rates.memory
        if local_size > 1:
            answer = size * (1 if payload.collective is AllReduceMean else peers)
            communication += 8 * answer / network.local_bandwidth
    if local_size > 1:
        communication += 8 * ring_bytes(AllReduceMean, info.bytes, local_size) / network.local_bandwidth
    return ParameterCost(assignment.bytes, wire, compute, communication)


def _passes(payload: Payload, peers: int) -> float:
    if payload.collective is AllReduceMean:
        return IN_PLACE_PASSES if payload.in_place else FUSED_PASSES
    return 2 + GATHERED_PASSES * peers  # to join it to others first

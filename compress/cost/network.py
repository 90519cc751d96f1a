"""The links that gradients travel on."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from compress.cost.units import Bandwidth, Seconds
from compress.exchange import AllReduceMean, Request, ring_bytes


class Network(BaseModel):
    """Links between nodes (or workers that are nodes of their own), and inside nodes.

    How many workers meet there, and how many to a node, is the plan's.

    Attributes:
        bandwidth: bits per second that a node can send.
        latency: seconds from node to node, for each message of a ring; what is not known counts as none.
        local_bandwidth: bits per second that a worker can send inside its node.
        local_latency: seconds from worker to worker of a node.

    Raises:
        ValueError: (pydantic's) a bandwidth or a time that cannot be read.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    bandwidth: Bandwidth
    latency: Seconds = 0.0
    local_bandwidth: Bandwidth = 100e9
    local_latency: Seconds = 5e-6

    def sending(self, wire_bytes: float) -> float:
        """Seconds that a node needs to send so many bytes."""
        return 8 * wire_bytes / self.bandwidth

    def waiting(self, collective: type[Request], peers: int) -> float:
        """Seconds of latency in one collective: a ring's messages go one after another."""
        return ring_messages(collective, peers) * self.latency

    def inside(self, collective: type[Request], size: float, workers: int) -> float:
        """Seconds of one collective inside a node."""
        sent = 8 * ring_bytes(collective, size, workers) / self.local_bandwidth
        return sent + ring_messages(collective, workers) * self.local_latency

    def broadcast(self, size: float, workers: int) -> float:
        """Seconds until all workers of a node have what its first one has, handed on from one to the next."""
        return 8 * size / self.local_bandwidth + (workers - 1) * self.local_latency if workers > 1 else 0.0


def ring_messages(collective: type[Request], peers: int) -> int:
    """Messages that follow each other: all-reduce 2(S−1), all-gather S−1."""
    return (2 if collective is AllReduceMean else 1) * (peers - 1)

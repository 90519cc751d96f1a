"""Two-level exchange: dense averages inside a node, one compressed exchange between nodes."""

import torch.distributed as dist
from torch import Tensor

from compress.exchange import Exchange, Flight, Request


class NodeExchange(Exchange):
    """Exchanges between nodes: each node's first worker takes part, and hands the answers to the others.

    Workers of a node must come with equal tensors, which `average_inside` gives them. Links between nodes
    then carry each payload once for a node, however many workers it has.

    Attributes:
        world_size: nodes.
        inside_bytes: bytes this worker has handed to collectives inside its node.
    """

    def __init__(self, group: dist.ProcessGroup | None, local_group: dist.ProcessGroup) -> None:
        """Call it on all workers alike.

        Args:
            group: of all workers.
            local_group: of this node's workers, which have consecutive ranks in `group`; all nodes have as many.

        Raises:
            ValueError: workers are not ordered by node, or nodes differ in size.
        """
        super().__init__(group)
        local = dist.get_process_group_ranks(local_group)
        ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
        nodes: list[list[int]] = [[] for _ in ranks]
        dist.all_gather_object(nodes, local, group=group)
        # Judged from what all have gathered, so that either all workers refuse or none.
        size = len(nodes[0])
        expected = [ranks[position - position % size :][:size] for position in range(len(ranks))]
        if nodes != expected or len(ranks) % size:
            raise ValueError(
                f"local_group holds ranks {local} here, and the nodes are {sorted({tuple(node) for node in nodes})}; "
                "every node must have as many workers, with consecutive ranks (as torchrun numbers them)"
            )
        leaders = ranks[::size]
        self._local_group = local_group
        self._leader = local[0]
        self._leads = dist.get_rank() == self._leader
        self._local_size = size
        self.group = dist.new_group(leaders, use_local_synchronization=True) if self._leads else None
        self.world_size = len(leaders)
        self.inside_bytes = 0

    def average_inside(self, buffer: Tensor) -> None:
        """Average a tensor over the node's workers, in place."""
        dist.all_reduce(buffer.div_(self._local_size), group=self._local_group)
        self.inside_bytes += buffer.numel() * buffer.element_size()

    def finish(self, flight: Flight) -> None:
        super().finish(flight)
        dist.broadcast(flight.buffer, self._leader, group=self._local_group)
        self.inside_bytes += flight.buffer.numel() * flight.buffer.element_size()

    def _launch_reduce(self, buffer: Tensor) -> dist.Work | None:
        return super()._launch_reduce(buffer) if self._leads else None

    def _launch_gather(self, buffer: Tensor, payload: Tensor) -> dist.Work | None:
        return super()._launch_gather(buffer, payload) if self._leads else None

    def count(self, collective: type[Request], size: int) -> None:
        if self._leads:
            super().count(collective, size)

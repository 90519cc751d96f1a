"""Row spaces that the architecture fixes, and how many dimensions they have.

Every activation or adjoint X is a matrix of rows. Where the network is linear, X is a fixed linear
function of earlier values *on the same rows with the same coefficients*:

    X = X_1 M_1 + ... + X_k M_k,

the M_i made of weights alone, so alike for every sample, worker and accumulation step. A `Space`
records just that: how wide X is and which spaces it is such a function of. A space without parts is a
source: nothing is known of it but the most dimensions it can have.

The rows of X then lie in a space of at most as many dimensions as a **minimum vertex cut** between
the sources and X is wide: X is a linear function of the values on any cut. For generic weights the
cut is reached (the max-flow min-cut theorem of linear network coding), so the bound is as tight as
the architecture allows. Residual sums merge by themselves: `x + x W` is cut at `x`. A bias is the
function of one constant source that all biases share, so it adds one dimension however often added.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import networkx as nx


@dataclass(frozen=True, eq=False)
class Space:
    """A set of rows: `width` limits its dimensions, `parts` are the spaces it is a linear function of.

    `label` says in words what narrows it. `uniform` marks a value whose entries all equal one
    constant, alike on all workers: the adjoint that a mean or a sum sends back.
    """

    width: int
    label: str
    parts: tuple["Space", ...] = ()
    uniform: bool = False

    @cached_property
    def _cut(self) -> tuple[int, tuple["Space", ...]]:
        return _minimum_cut(self)

    @property
    def dimension(self) -> int:
        """The most dimensions the rows can span."""
        return self._cut[0]

    @property
    def narrowest(self) -> tuple["Space", ...]:
        """The spaces of a minimum cut: what sets `dimension`."""
        return self._cut[1]


ONE = Space(1, "a bias")
"""The constant source: every row is the same vector, on every worker and in every step."""


def constant(width: int) -> Space:
    """A fixed vector in every row, such as a bias of `width` entries."""
    return Space(width, "a bias", (ONE,))


def uniform(width: int) -> Space:
    """Rows whose entries all equal one constant."""
    return Space(width, "a mean or a sum", (ONE,), uniform=True)


def image(part: Space, width: int, label: str) -> Space:
    """The image of a space under a map that weights alone decide."""
    return Space(width, label, (part,))


def merge(parts: Iterable[Space], width: int, label: str) -> Space:
    """The sum of values on the same rows; a value that occurs twice counts once."""
    unique = tuple(dict.fromkeys(parts))
    return unique[0] if len(unique) == 1 else Space(width, label, unique)


def _minimum_cut(target: Space) -> tuple[int, tuple[Space, ...]]:
    """Cut the graph of parts between its sources and the target, each space costing its width."""
    graph = nx.DiGraph()
    pending, seen = [target], {target}
    while pending:
        space = pending.pop()
        graph.add_edge((space, "in"), (space, "out"), capacity=space.width)
        if not space.parts:
            graph.add_edge("sources", (space, "in"))  # no capacity: never cut
        for part in space.parts:
            graph.add_edge((part, "out"), (space, "in"))
            if part not in seen:
                seen.add(part)
                pending.append(part)
    value, (near, far) = nx.minimum_cut(graph, "sources", (target, "out"))
    cut = tuple(space for space in seen if (space, "in") in near and (space, "out") in far)
    return int(value), cut

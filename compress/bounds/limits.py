"""From the uses of a weight to the bound of its gradient."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from compress.bounds.dimensions import Dimensions
from compress.bounds.spaces import Generator
from compress.bounds.tracer import Use
from compress.bounds.values import Value, less_constants

_MOST_COUNTED = 16
"""Uses of a weight whose spaces are counted one by one; of more (a long recurrence) only all together."""


class Side(NamedTuple):
    """The space of one side of a product ΔᵀA."""

    generators: tuple[Generator, ...]
    width: int
    labels: frozenset[str]
    slack: float = 0.0
    proven: bool = True


class Limit(NamedTuple):
    """An upper limit on a rank: why, in words, and which side sets it (None where rows do)."""

    rank: int
    reason: str
    side: Side | None = None


def side(value: Value) -> Side:
    """All generators of a value."""
    found: dict[int, Generator] = {}
    labels = set()
    for terms in value.terms():
        for c, generator in terms.items():
            found[generator.index] = generator
            labels.add(generator.label or c.label)
    return Side(tuple(found.values()), value.width, frozenset(labels), value.slack, value.proven)


class Limits:
    """Limits for gradients that are averaged over `passes` backward passes: workers times accumulation steps."""

    def __init__(self, dimensions: Dimensions, passes: int, distinct_tokens: int | None) -> None:
        self.dimensions, self._passes, self._tokens = dimensions, passes, distinct_tokens

    def dimension(self, side: Side) -> int:
        return self.dimensions(side.generators, side.width)

    def at_most(self, side: Side) -> int:
        """An upper limit on the dimension, without evaluating anything."""
        return self.dimensions.at_most(side.generators, side.width)

    def of(self, uses: Sequence[Use], shape: tuple[int, int]) -> tuple[Limit, tuple[Side, Side]]:
        """The limit of Σ ΔᵀA, and the spaces of all A and of all Δ."""
        pairs = [sides(use) for use in uses]
        counted = len(uses) <= _MOST_COUNTED
        limits = [self._of_one(use, pair, counted) for use, pair in zip(uses, pairs, strict=True)]
        # What meets nothing on the other side (a state that starts at zero) adds to neither space.
        alive = [i for i, limit in enumerate(limits) if limit.rank] or [0]
        pairs, limits = [pairs[i] for i in alive], [limits[i] for i in alive]
        inputs, adjoint = (_joined(all_of) for all_of in zip(*pairs, strict=True))
        together = Limit(
            sum(limit.rank for limit in limits),
            _words([limit.reason for limit in limits]),
            limits[0].side if len(limits) == 1 else None,
        )
        if len(limits) > 1:
            together = together._replace(reason=f"{len(limits)} uses: {together.reason}")
        m, n = shape
        candidates = [
            together,
            Limit(self.dimension(inputs), f"input: {_labels(inputs)}", inputs),
            Limit(self.dimension(adjoint), f"adjoint: {_labels(adjoint)}", adjoint),
        ]
        best = min(candidates, key=lambda limit: limit.rank)
        if best.rank >= min(m, n):
            why = f"input: {_labels(inputs)}; adjoint: {_labels(adjoint)}"
            best = Limit(min(m, n), f"full: min(m, n) = {min(m, n)}; {why}")
        return best, (inputs, adjoint)

    def _of_one(self, use: Use, pair: tuple[Side, Side], counted: bool) -> Limit:
        inputs, adjoint = pair
        rows = use.rows
        kept = use.adjoint.balanced or use.inputs.balanced
        words = f"rows: {rows} in a backward pass"
        if kept:
            over = 1
            owner = use.adjoint if use.adjoint.balanced else use.inputs
            for axis in owner.axes:
                if axis.key in kept:
                    over *= axis.size
            rows -= rows // over
            words = f"rows: {rows} independent ones in a backward pass (they sum to zero)"
        height = min(use.inputs.stacked, use.adjoint.stacked)
        if height < rows:
            rows, words = height, f"rows: {height} independent ones in a backward pass"
        if use.tokens and self._tokens is not None and self._tokens < rows:
            rows, words = self._tokens, f"rows: {self._tokens} distinct tokens in a backward pass"
        count = self.dimension if counted else self.at_most
        candidates = [
            Limit(count(inputs), f"input: {_labels(inputs)}", inputs),
            Limit(count(adjoint), f"adjoint: {_labels(adjoint)}", adjoint),
            Limit(rows * self._passes, f"{words} × {self._passes} (accumulation steps × workers)"),
        ]
        return min(candidates, key=lambda limit: limit.rank)


def sides(use: Use) -> tuple[Side, Side]:
    """The spaces of A and of Δ: what one sums to zero over, a constant of the other does not survive."""
    return side(_surviving(use.inputs, use.adjoint)), side(_surviving(use.adjoint, use.inputs))


def _surviving(value: Value, other: Value) -> Value:
    """Without constants that vanish since the other side sums to zero, for each index of the axes it keeps."""
    if not other.balanced:
        return value
    kept = {axis.key for axis in other.axes} - other.balanced
    return less_constants(value, {axis.key for axis in value.axes} - kept)


def _joined(parts: Iterable[Side]) -> Side:
    together = list(parts)
    found = {generator.index: generator for part in together for generator in part.generators}
    return Side(
        tuple(found.values()),
        together[0].width,
        frozenset().union(*(part.labels for part in together)),
        max(part.slack for part in together),
        all(part.proven for part in together),
    )


_MOST_LABELS = 4


def _labels(side: Side) -> str:
    labels = sorted(side.labels)
    if len(labels) > _MOST_LABELS:
        labels = [*labels[:_MOST_LABELS], f"{len(labels) - _MOST_LABELS} more"]
    return " + ".join(labels) or "always zero"


def _words(reasons: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(reasons))
    if len(distinct) > _MOST_LABELS:
        distinct = [*distinct[:_MOST_LABELS], f"{len(distinct) - _MOST_LABELS} more"]
    return " + ".join(distinct)

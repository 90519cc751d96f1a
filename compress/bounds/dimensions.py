"""How many dimensions spaces have: the rank of their generators at weights drawn at random."""

import zlib
from collections.abc import Hashable, Iterable, Mapping

import numpy as np

from compress.bounds import field
from compress.bounds.field import Matrix
from compress.bounds.maps import Map
from compress.bounds.spaces import Generator

_TRIALS = 2
"""Draws of the weights, of which the highest rank counts: one draw in a million is unlucky."""

_MOST_WORK = 1.5e8
"""Multiplications that a rank by elimination may take; above that the limits of the generators are summed."""

_ALL_WORK, _ALL_PRODUCTS = 1e9, 1e10
"""Multiplications that all ranks of a network may take, and all products of maps before them: some seconds."""

_SMALL_WORK, _SMALL_PRODUCTS = 2e6, 2e7
"""What a rank may always take."""

_MOST_ENTRIES = 2**22
"""Entries of a map that is written down."""

_KEPT_ENTRIES = 2**25
"""Entries of evaluated generators that are kept for the next space."""


class _Drawn:
    """Weights drawn at random, alike whenever asked for again."""

    def __init__(self, trial: int, round: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._trial, self._round, self._shapes = trial, round, shapes
        self._parameters: dict[str, Matrix] = {}

    def forget(self) -> None:
        self._parameters.clear()

    def _draw(self, key: Hashable, shape: tuple[int, ...]) -> Matrix:
        seed = zlib.crc32(repr((self._trial, key, shape)).encode())
        return field.draw(np.random.default_rng((seed, self._trial)), shape)

    def parameter(self, name: str) -> Matrix:
        if name not in self._parameters:
            self._parameters[name] = self._draw(name, self._shapes[name])
        return self._parameters[name]

    def unknown(self, key: Hashable, shape: tuple[int, ...]) -> Matrix:
        return self._draw((self._round, key), shape)

    def number(self, value: float) -> float:
        return field.number(value)

    def inverse(self, matrix: Matrix) -> Matrix:
        return field.inverse(matrix)

    def product(self, left: Matrix, right: Matrix) -> Matrix:
        return field.product(left, right)

    def reduced(self, matrix: Matrix) -> Matrix:
        found: Matrix = matrix % field.PRIME
        return found


class Dimensions:
    """Counts dimensions of spaces over `passes` backward passes: workers times accumulation steps."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], passes: int) -> None:
        self._passes = passes
        # Shared maps are drawn alike in all rounds; those that differ between passes anew in each.
        self._weights = [[_Drawn(trial, round, shapes) for round in range(2)] for trial in range(_TRIALS)]
        self._evaluated: dict[tuple[int, int, int, int], Matrix] = {}
        self._entries = 0
        self._known: dict[frozenset[int], int] = {}
        self._work, self._products = _ALL_WORK, _ALL_PRODUCTS

    def __call__(self, generators: Iterable[Generator], width: int) -> int:
        """The most dimensions that the generators span together."""
        distinct = {generator.index: generator for generator in generators}
        key = frozenset(distinct)
        if key not in self._known:
            self._known[key] = self._count(list(distinct.values()), width)
        return self._known[key]

    def forget(self) -> None:
        """Let go of what was evaluated; what was counted stays known."""
        self._evaluated.clear()
        self._entries = 0
        for weights in self._weights:
            for drawn in weights:
                drawn.forget()

    def at_most(self, generators: Iterable[Generator], width: int) -> int:
        """An upper limit, without evaluating anything."""
        return min(width, sum(part.limit * (self._passes if part.local else 1) for part in generators))

    def _count(self, generators: list[Generator], width: int) -> int:
        if any(generator.generic and generator.limit == width for generator in generators):
            return width
        limit = self.at_most(generators, width)
        if len(generators) <= 1 and all(generator.generic and not generator.local for generator in generators):
            return limit
        if not self._affordable(generators, width):
            return limit
        return min(limit, max(self._rank(generators, trial) for trial in range(_TRIALS)))

    def _affordable(self, generators: list[Generator], width: int) -> bool:
        """Whether to evaluate the generators; counted, not timed, so that all workers decide alike."""
        if any(generator.largest > _MOST_ENTRIES for generator in generators):
            return False
        rows = sum(min(part.base, part.limit) * (2 if part.local else 1) for part in generators)
        work = min(rows, width) ** 2 * max(rows, width)
        products = self._missing(generators)
        if work <= _SMALL_WORK and products <= _SMALL_PRODUCTS:
            return True
        if work > min(_MOST_WORK, self._work) or products > self._products:
            return False
        self._work -= work
        self._products -= products
        return True

    def _missing(self, generators: list[Generator]) -> int:
        """Multiplications that evaluating takes, less what was evaluated before."""
        total, most = 0, max(self._products, _SMALL_PRODUCTS)
        for generator in generators:
            rows = min(generator.base, generator.limit)
            pending, seen = [generator], {generator.index}
            while pending and total <= most:
                part = pending.pop()
                if (part.index, rows, 0, 0) in self._evaluated:
                    continue
                total += rows * (part.map.work if isinstance(part.map, Map) else part.width)
                for below in part.parts:
                    if below.index not in seen:
                        seen.add(below.index)
                        pending.append(below)
        return total

    def _rank(self, generators: list[Generator], trial: int) -> int:
        first = [self._matrix(generator, trial, 0) for generator in generators]
        once = field.rank(np.concatenate(first))
        local = [generator for generator in generators if generator.local]
        if not local or self._passes == 1:
            return once
        second = [self._matrix(generator, trial, 1) for generator in local]
        twice = field.rank(np.concatenate([*first, *second]))
        # Each further pass adds at most as much as the one before (ranks are submodular).
        return twice + (self._passes - 2) * (twice - once)

    def _matrix(self, generator: Generator, trial: int, round: int) -> Matrix:
        """As many random combinations of the generator's rows as its rank can have."""
        rows = min(generator.base, generator.limit)
        pending = [generator]
        while pending:
            part = pending[-1]
            missing = [p for p in part.parts if (p.index, rows, trial, round if p.local else 0) not in self._evaluated]
            if missing:
                pending += missing
                continue
            pending.pop()
            key = (part.index, rows, trial, round if part.local else 0)
            if key not in self._evaluated:
                made = self._step(part, rows, trial, round)
                self._entries += made.size
                self._evaluated[key] = made
        found = self._evaluated[generator.index, rows, trial, round if generator.local else 0]
        if self._entries > _KEPT_ENTRIES:
            self._evaluated.clear()
            self._entries = 0
        return found

    def _step(self, part: Generator, rows: int, trial: int, round: int) -> Matrix:
        weights = self._weights[trial][round if part.local else 0]
        below = [self._evaluated[p.index, rows, trial, round if p.local else 0] for p in part.parts]
        if part.source is not None:
            dimension = part.limit
            if rows < dimension:
                combined = weights.unknown(("rows", part.source), (rows, dimension))
            else:
                combined = np.eye(dimension)
            if dimension == part.width:
                return combined
            return field.product(combined, weights.unknown(part.source, (dimension, part.width)))
        if isinstance(part.map, tuple):
            before, after = part.map
            return np.kron(np.eye(before), np.kron(below[0], np.eye(after)))
        if part.map is not None:
            local = self._weights[trial][round if part.map.local else 0]
            return part.map.apply(below[0], local)
        total: Matrix = np.sum(below, axis=0) % field.PRIME
        return total

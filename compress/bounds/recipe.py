"""How to compute the spaces of a network's gradients from its weights: a list of steps that can be pickled.

A generator is a matrix of rows made of weights alone (see `spaces`). Its row space is all that counts here, so
its rows may be computed from any point that all its ways pass, the narrowest above all: behind a
bottleneck 8 wide there are 8 rows, whatever came before. What several spaces share is one step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from compress.bounds.basis import Sizes
from compress.bounds.maps import Centre, Diagonal, Kernel, Linear, Map, Row
from compress.bounds.spaces import Algebra, Generator

_SPARE_ROWS = 8
"""Random combinations of rows beyond the rank that they must have: fewer are ill-conditioned now and then."""

_MOST_STRIPPED = 48
"""Generators of one space that are compared with each other."""

_DEEPEST = 200
"""Steps back from a generator in search of what others hold already."""


@dataclass(frozen=True)
class Everything:
    """All rows there are: the identity of `width`."""

    width: int


@dataclass(frozen=True)
class Contrasts:
    """All rows that sum to zero: width − 1 orthonormal ones."""

    width: int


@dataclass(frozen=True)
class Stored:
    """The rows of a parameter."""

    name: str
    width: int


@dataclass(frozen=True)
class Beside:
    """The same rows at many positions: I ⊗ X ⊗ I."""

    before: int
    after: int


@dataclass(frozen=True)
class Mixed:
    """So many random combinations of the rows, drawn alike on every worker."""

    rows: int


@dataclass(frozen=True)
class Sum:
    """The sum of rows that belong together."""


How = Map | Everything | Contrasts | Stored | Beside | Mixed | Sum


def read(how: How) -> str | None:
    """The parameter that a step reads, None where it reads none."""
    return how.name if isinstance(how, Linear | Kernel | Row | Diagonal | Stored) else None


class Step(NamedTuple):
    """A narrow matrix, `rows` × `width`, made of those of earlier steps (`parts`, by their place in the recipe)."""

    how: How
    parts: tuple[int, ...]
    rows: int
    width: int


class Output(NamedTuple):
    """A space: spanned by the rows of all `parts`, in no more than `columns` dimensions."""

    parts: tuple[int, ...]
    columns: int


class Sides(NamedTuple):
    """The spaces of A and of Δ of one parameter; None where weights do not give them, or they are all there is."""

    inputs: Output | None
    adjoint: Output | None

    @property
    def sizes(self) -> Sizes:
        return Sizes(*(side.columns if side is not None else None for side in self))


@dataclass(eq=False)
class Recipe:
    """The steps for all parameters of a network; plain data, which can be pickled.

    Attributes:
        steps: each made of earlier ones.
        places: where a step is that was written already.
        exact: by parameter, the spaces that hold its gradient.
        linear: by parameter, those that would hold it if every elementwise activation were a multiple of its
            input.
        names: of the parameters that steps read, as `named_parameters()` has them, by the names in the steps.
    """

    names: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    places: dict[tuple[How, tuple[int, ...]], int] = field(default_factory=dict, repr=False)
    exact: dict[str, Sides] = field(default_factory=dict)
    linear: dict[str, Sides] = field(default_factory=dict)


class Writer:
    """Writes the spaces of one walk over a network into a recipe that several walks share."""

    def __init__(self, recipe: Recipe, algebra: Algebra) -> None:
        self._recipe, self._algebra = recipe, algebra
        self._rows: dict[tuple[int, int | None, int], int] = {}
        self._above: dict[int, Generator | None] = {}
        self._depth: dict[int, int] = {}
        self._foreign: set[int] = set()  # steps that read a parameter of the loss: the network does not hold it
        self._left: dict[tuple[int, frozenset[int]], Generator | None] = {}

    def output(self, generators: Sequence[Generator], dimension: int, width: int) -> Output | None:
        """A space of at most `dimension` in `width`; None where weights do not give it, or it is all there is."""
        distinct = list(generators)
        if dimension >= width or not distinct or any(not part.known or part.local for part in distinct):
            return None
        parts = tuple(self._step(part) for part in self._stripped(distinct))
        if not self._foreign.isdisjoint(parts):
            return None
        return Output(parts, min(dimension, sum(self._recipe.steps[part].rows for part in parts)))

    # --- rows of generators -------------------------------------------------------------------------------------

    def _step(self, generator: Generator) -> int:
        """The step whose rows span what the generator's do."""
        pending = [generator]
        while pending:
            part = pending[-1]
            start = self._start(part)
            if start is not None and (start.index, None, 0) not in self._rows:
                pending.append(start)
                continue
            pending.pop()
            if (part.index, None, 0) not in self._rows:
                self._rows[part.index, None, 0] = self._spanning(part, start)
        return self._rows[generator.index, None, 0]

    def _start(self, part: Generator) -> Generator | None:
        """Where the rows of a generator are computed from: the nearest point before it that all its ways pass."""
        if _full(part) or part.source is not None:
            return None
        return self._nearest(part)

    def _spanning(self, part: Generator, start: Generator | None) -> int:
        if _full(part):
            return self._add(Everything(part.width), (), part.width, part.width)
        if start is None:  # a source, or several with the same coefficients: as many rows each
            return self._from(part, None, 0)
        if isinstance(part.map, Centre) and _full(start):
            return self._add(Contrasts(part.width), (), part.width - 1, part.width)
        before = self._rows[start.index, None, 0]
        rows = part.limit + _SPARE_ROWS
        return self._from(part, start, rows if self._recipe.steps[before].rows > rows else 0)

    def _from(self, whole: Generator, start: Generator | None, mixed: int) -> int:
        """The rows of `whole`, each made of the same row of `start` (or of random combinations of its rows)."""
        if start is not None and (start.index, start.index, mixed) not in self._rows:
            first = self._rows[start.index, None, 0]
            if mixed:
                first = self._add(Mixed(mixed), (first,), mixed, start.width)
            self._rows[start.index, start.index, mixed] = first
        at = start.index if start is not None else -1
        for part in _ordered(whole, start):
            key = (part.index, at, mixed)
            if key not in self._rows:
                self._rows[key] = self._applied(part, [self._rows[below.index, at, mixed] for below in part.parts])
        return self._rows[whole.index, at, mixed]

    def _applied(self, part: Generator, below: Sequence[int]) -> int:
        if part.source is not None:
            if isinstance(part.source, tuple) and part.source[0] == "parameter":
                return self._add(Stored(part.source[1], part.width), (), part.rows, part.width)
            return self._add(Everything(part.width), (), part.width, part.width)
        rows = self._recipe.steps[below[0]].rows
        if isinstance(part.map, tuple):
            before, after = part.map
            return self._add(Beside(before, after), tuple(below), before * rows * after, part.width)
        if part.map is None:
            return self._add(Sum(), tuple(below), rows, part.width)
        return self._add(part.map, tuple(below), rows, part.width)

    def _add(self, how: How, parts: tuple[int, ...], rows: int, width: int) -> int:
        place = self._recipe.places.setdefault((how, parts), len(self._recipe.steps))
        if place == len(self._recipe.steps):
            self._recipe.steps.append(Step(how, parts, rows, width))
        name = read(how)
        if (name is not None and name not in self._recipe.names) or not self._foreign.isdisjoint(parts):
            self._foreign.add(place)
        return place

    # --- points that all ways pass ------------------------------------------------------------------------------

    def _nearest(self, generator: Generator) -> Generator | None:
        """The last generator before this one on all ways from the sources to it; None where there is none."""
        for part in _ordered(generator, None):
            if part.index in self._above:
                continue
            found: Generator | None = part.parts[0] if part.parts else None
            for other in part.parts[1:]:
                found = self._common(found, other)
            self._above[part.index] = found
            self._depth[part.index] = self._depth[found.index] + 1 if found is not None else 0
        return self._above[generator.index]

    def _common(self, one: Generator | None, other: Generator | None) -> Generator | None:
        while one is not other:
            if one is None or other is None:
                return None
            if self._depth[one.index] >= self._depth[other.index]:
                one = self._above[one.index]
            else:
                other = self._above[other.index]
        return one

    # --- what a space holds twice -------------------------------------------------------------------------------

    def _stripped(self, generators: list[Generator]) -> list[Generator]:
        """Generators of the same space, without the terms that others span.

        All biases together are one generator, which passes a bottleneck with the data: behind it, only the biases
        that come later say something new, and the weights before it need not be read.
        """
        if len(generators) > _MOST_STRIPPED:
            return generators
        kept = list(generators)
        for generator in generators:
            others = [other for other in kept if other is not generator]
            left = self._less(generator, others, _DEEPEST)
            kept = others if left is None else [left if other is generator else other for other in kept]
        return kept

    def _less(self, generator: Generator, others: Sequence[Generator], depth: int) -> Generator | None:
        """The generator without terms whose rows lie in the span of the others; None where nothing is left."""
        if any(other is generator or _full(other) for other in others):
            return None
        if not depth or not others or isinstance(generator.map, tuple) or generator.source is not None:
            return generator
        key = (generator.index, frozenset(other.index for other in others))
        if key not in self._left:
            self._left[key] = self._less_terms(generator, others, depth)
        return self._left[key]

    def _less_terms(self, generator: Generator, others: Sequence[Generator], depth: int) -> Generator | None:
        if isinstance(generator.map, Map):
            before = [other.parts[0] for other in others if other.map == generator.map]
            part = self._less(generator.parts[0], before, depth - 1)
            return None if part is None else self._algebra.image(part, generator.map)
        terms = [self._less(part, others, depth - 1) for part in generator.parts]
        left = [term for term in terms if term is not None]
        return self._algebra.sum(left) if left else None


def _full(generator: Generator) -> bool:
    """Whether random weights give it all dimensions there are: a limit as wide need not be reached."""
    while isinstance(generator.map, Diagonal):
        generator = generator.parts[0]
    return generator.generic and generator.limit >= generator.width


def _ordered(generator: Generator, start: Generator | None) -> list[Generator]:
    """What the generator is made of, itself last, and not beyond `start`: parts before what they are part of."""
    found = {generator.index: generator}
    pending = [generator]
    while pending:
        for part in pending.pop().parts:
            if part is not start and part.index not in found:
                found[part.index] = part
                pending.append(part)
    return [found[index] for index in sorted(found)]

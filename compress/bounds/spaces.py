"""Spaces of rows as symbols: what they are made of, and how many dimensions they have.

Every activation or adjoint X is a matrix of rows. Where the network is linear,

    X = c_1 g_1 + ... + c_k g_k,

the c_i matrices of *coefficients*, which depend on the batch, and the g_i *generators*, matrices made of
weights alone, so alike for every sample, worker and step. The rows of X lie in the span of the rows of the
g_i, whatever the batch: that span is the space, and its dimension the rank of the g_i on top of each other.

A generator is a symbol: a source, or a generator seen through one more map, or a sum. Equal symbols are one
object, so that whatever is shared is stored, and evaluated, once.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from compress.bounds.maps import Embed, Map, Scale, Select


class Coefficients:
    """The name of a matrix of coefficients: equal names have equal values, row by row.

    `constant` ones are a column of ones: the same on every row, worker and step. `label` says in words
    where they come from.
    """

    __slots__ = ("constant", "label", "parent", "tag")

    def __init__(
        self, parent: "Coefficients | None", tag: Hashable, label: str = "", *, constant: bool = False
    ) -> None:
        self.parent, self.tag, self.constant = parent, tag, constant
        self.label: str = label or (parent.label if parent is not None else "")


class Generator:
    """A matrix of `width` columns that weights alone decide.

    Attributes:
        limit: an upper limit on its rank, found without evaluating it.
        generic: whether weights drawn at random give it that rank.
        local: whether it differs between workers and backward passes.
        known: whether it can be computed from the weights.
        base: dimensions of its source.
        largest: entries of the largest map that it is seen through.
        label: what limits the rank, in words; empty where nothing does.
    """

    __slots__ = (
        "base",
        "generic",
        "index",
        "known",
        "label",
        "largest",
        "limit",
        "local",
        "map",
        "parts",
        "rows",
        "source",
        "width",
    )

    def __init__(
        self,
        index: int,
        width: int,
        limit: int,
        rows: int,
        label: str,
        *,
        generic: bool,
        local: bool,
        known: bool,
        parts: tuple["Generator", ...] = (),
        through: "Map | tuple[int, int] | None" = None,
        source: Hashable = None,
    ) -> None:
        self.index, self.width, self.limit, self.rows, self.label = index, width, limit, rows, label
        self.generic, self.local, self.known = generic, local, known
        self.parts, self.map, self.source = parts, through, source
        self.base: int = parts[0].base if parts else limit
        own = through.work if isinstance(through, Map) else 0
        self.largest: int = max(own, *(part.largest for part in parts)) if parts else own


Terms = Mapping[Coefficients, Generator]
"""A value, row by row the sum of coefficients times generators; empty where it is zero."""


_MOST_TERMS = 48
"""Terms of a value above which those that span nothing new are put together."""


class Algebra:
    """Makes coefficients and generators, each symbol once; `dimension` counts what generators span."""

    def __init__(self, dimension: Callable[[Iterable[Generator], int], int]) -> None:
        self._dimension = dimension
        self._coefficients: dict[Any, Coefficients] = {}
        self._generators: dict[Any, Generator] = {}
        self.constant = Coefficients(None, "constant", "a bias", constant=True)
        self.one = self.source("one", 1, 1, "a bias", known=True)

    # --- coefficients -----------------------------------------------------------------------------------

    def root(self, *key: Hashable, label: str) -> Coefficients:
        """Coefficients of which nothing is known but their name."""
        return self._coefficients.setdefault((None, key), Coefficients(None, key, label))

    def tagged(self, parent: Coefficients, *tag: Hashable) -> Coefficients:
        """What a linear map of the rows, named by `tag`, makes of coefficients."""
        if tag[0] == "rename" and parent.parent is not None:
            renames: Any = tag[1]
            if parent.tag == ("rename", frozenset((new, old) for old, new in renames)):
                return parent.parent
        key = (parent, tag)
        found = self._coefficients.get(key)
        if found is None:
            found = self._coefficients[key] = Coefficients(parent, tag)
        return found

    # --- generators -----------------------------------------------------------------------------------------

    def source(self, key: Hashable, dimension: int, width: int, label: str, *, known: bool = False) -> Generator:
        """A space of `dimension` within `width`, named by its key; all there is where the two are equal."""
        if dimension >= width:
            key, dimension, label = ("all", width), width, ""
        found = self._generators.get(("source", key))
        if found is None:
            found = Generator(
                len(self._generators),
                width,
                dimension,
                dimension,
                label,
                generic=True,
                local=False,
                known=known or dimension == width,
                source=key,
            )
            self._generators["source", key] = found
        return found

    def image(self, part: Generator, through: Map, label: str | None = None) -> Generator:
        """A generator seen through one more map."""
        simpler = self._simplified(part, through)
        if simpler is not None:
            return simpler
        key = (part.index, through)
        found = self._generators.get(key)
        if found is None:
            limit = min(part.limit, through.limit)
            keeps_rank = through.generic or isinstance(through, Embed | Scale)
            # A generic part may be cut to any of its entries, unless it was put together from pieces.
            cut = isinstance(through, Select) and (part.source is not None or getattr(part.map, "generic", False))
            found = self._generators[key] = Generator(
                len(self._generators),
                through.columns,
                limit,
                part.rows,
                part.label if limit == part.limit or label is None else label,
                generic=part.generic and (keeps_rank or cut),
                local=part.local or through.local,
                known=part.known and through.known,
                parts=(part,),
                through=through,
            )
        return found

    def _simplified(self, part: Generator, through: Map) -> Generator | None:
        if isinstance(through, Scale):
            if through.factor == 1:
                return part
            if isinstance(part.map, Scale):
                return self.image(part.parts[0], Scale(through.rows, through.columns, through.factor * part.map.factor))
        if isinstance(through, Select):
            if through.columns == part.width:
                return part
            if isinstance(part.map, Embed) and (part.map.start, part.map.step, part.map.rows) == (
                through.start,
                through.step,
                through.columns,
            ):
                return part.parts[0]
        if isinstance(through, Embed) and through.columns == part.width:
            return part
        return None

    def kron(self, part: Generator, before: int, after: int) -> Generator:
        """The same generator side by side at many positions: I ⊗ part ⊗ I, coefficients likewise."""
        if before * after == 1:
            return part
        key = ("kron", part.index, before, after)
        found = self._generators.get(key)
        if found is None:
            times = before * after
            found = self._generators[key] = Generator(
                len(self._generators),
                part.width * times,
                part.limit * times,
                part.rows * times,
                f"{part.label} at {times} positions",
                generic=part.generic,
                local=part.local,
                known=part.known,
                parts=(part,),
                through=(before, after),
            )
        return found

    def sum(self, parts: Iterable[Generator]) -> Generator:
        """The sum of generators with the same coefficients."""
        ordered = sorted(parts, key=lambda part: part.index)
        if len(ordered) == 1:
            return ordered[0]
        key = ("sum", *(part.index for part in ordered))
        found = self._generators.get(key)
        if found is None:
            width, rows = ordered[0].width, ordered[0].rows
            limit = min(width, rows, sum(part.limit for part in ordered))
            found = self._generators[key] = Generator(
                len(self._generators),
                width,
                limit,
                rows,
                " + ".join(dict.fromkeys(part.label for part in ordered)),
                # A row (or a column) of a generic map stays generic whatever is added from elsewhere.
                generic=limit == 1 and any(part.generic for part in ordered),
                local=any(part.local for part in ordered),
                known=all(part.known for part in ordered),
                parts=tuple(ordered),
            )
        return found

    def add(self, *values: Terms) -> Terms:
        """The sum of values on the same rows."""
        found: dict[Coefficients, list[Generator]] = {}
        for value in values:
            for coefficients, generator in value.items():
                found.setdefault(coefficients, []).append(generator)
        summed = {coefficients: self.sum(parts) for coefficients, parts in found.items()}
        return self._fewer(summed) if len(summed) > _MOST_TERMS else summed

    def _fewer(self, terms: dict[Coefficients, Generator]) -> Terms:
        """A value of the same space, or of all there is: coefficients are forgotten where they are many."""
        owners: dict[int, list[Coefficients]] = {}
        generators = {generator.index: generator for generator in terms.values()}
        for coefficients, generator in terms.items():
            owners.setdefault(generator.index, []).append(coefficients)
        width = next(iter(terms.values())).width
        label = next((c.label for c in terms if not c.constant), "a bias")
        full = any(generator.generic and generator.limit == width for generator in generators.values())
        many = sum(generator.limit for generator in generators.values()) >= 2 * width
        # A count is dear, and terms come one by one: it is made at powers of two.
        if not full and many and (len(terms) & (len(terms) - 1) == 0 or len(terms) > 2 * width + _MOST_TERMS):
            full = self._dimension(generators.values(), width) == width
        if full:
            return {self.root("all of", len(self._coefficients), label=label): self.source("all", width, width, "")}
        found: dict[Coefficients, Generator] = {}
        for index, shared in owners.items():
            if len(shared) == 1 or any(c.constant for c in shared):
                found.update((c, generators[index]) for c in shared)
            else:
                found[self.root("some of", len(self._coefficients), label=shared[0].label)] = generators[index]
        return found

    def zero_less(self, terms: Terms) -> Terms:
        """Without the constant term."""
        return {coefficients: generator for coefficients, generator in terms.items() if not coefficients.constant}

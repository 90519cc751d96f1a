"""Products entry by entry that keep a space."""

import math
from collections.abc import Hashable
from dataclasses import replace

from compress.bounds.maps import Diagonal, Map, Row, Tile, Unknown
from compress.bounds.rows import Rows
from compress.bounds.values import (
    ONE,
    Kind,
    Role,
    Shape,
    Value,
    factored,
    varies,
)


class Products(Rows):
    """Products with what is alike along rows, or along features."""

    def product(
        self,
        left: Value,
        right: Value,
        shapes: tuple[Shape, Shape],
        shape: Shape,
        names: tuple[Hashable, Hashable],
        label: str,
    ) -> Value:
        """The product entry by entry, each factor broadcast to `shape`; `names` are those of the factors.

        It keeps the space of one factor if the other is one vector for all rows, or alike along the features.
        """
        if Kind.ZERO in (left.kind, right.kind):
            return self.blank(shape, Kind.ZERO, label)
        if right.kind is Kind.UNIFORM or math.prod(shapes[1]) == 1:
            return self._times_number(left, right, shapes[0], shape, names[1])
        if left.kind is Kind.UNIFORM or math.prod(shapes[0]) == 1:
            return self._times_number(right, left, shapes[1], shape, names[0])
        factors = ((left, right, *shapes, names[1]), (right, left, *shapes[::-1], names[0]))
        for value, other, own, others, name in factors:
            if tuple(own) != tuple(shape):
                continue
            found = self._times_vector(value, other, own, others, name) or self._times_rows(
                value, other, own, others, name
            )
            if found is not None:
                return found
        found = self.anything(shape, ("product", self.fresh()), label)
        owner = next((v for v, s in zip((left, right), shapes, strict=True) if tuple(s) == tuple(shape)), None)
        return found if owner is None else replace(found, axes=self.unknown(owner).axes)

    def _times_number(self, value: Value, number: Value, own: Shape, shape: Shape, name: Hashable) -> Value:
        value = self.expanded(value, own, shape)
        if value.kind is Kind.ZERO:
            return value
        alike = not varies(number) if number.kind is Kind.UNIFORM else _constant(number)
        if number.kind is Kind.UNIFORM and factored(number.name)[1] == ONE:
            return self.scaled(value, factored(number.name)[0])
        if value.kind is not Kind.KNOWN:
            key: Hashable = ("scale", name, value.name)
            if value.kind is Kind.UNIFORM and (varies(value) or not alike):
                key = ("local", key)
            return replace(value, name=key, stochastic=frozenset())
        if alike:
            # One number on all workers.
            return value.mapped(lambda terms, index: self.through(terms, _diagonal(value.width, ("scale", name))))
        return value.mapped(lambda terms, index: self.tagged(terms, "scale", name))

    def _times_vector(self, value: Value, vector: Value, own: Shape, others: Shape, name: Hashable) -> Value | None:
        """A product with one vector of features, the same for all rows of a worker's batch."""
        long = [position - len(others) for position, size in enumerate(others) if size > 1]
        if len(long) != 1:
            return None
        place = len(own) + long[0]
        if value.kind is Kind.KNOWN:
            value, groups = self.grouped(value, own)
            if not any(axis.role is Role.FEATURE for axis in groups[place]):
                return None
        elif value.kind is not Kind.ANY:
            return None
        value = self.features(value, own, place)
        generators = [generator for terms in vector.terms() for generator in terms.values()]
        shared = _constant(vector)
        map = _diagonal(value.width, ("vector", name), local=not shared)
        if shared and len(generators) == 1 and isinstance(generators[0].map, Row):
            map = Diagonal(value.width, value.width, generators[0].map.name)
        return value.mapped(lambda terms, index: self.through(terms, map))

    def _times_rows(self, value: Value, other: Value, own: Shape, others: Shape, name: Hashable) -> Value | None:
        """A product with a number for each row."""
        padded = [1] * (len(own) - len(others)) + list(others)
        if value.kind is not Kind.KNOWN:
            return None
        value, groups = self.grouped(value, own)
        place = next(
            (i for i, group in enumerate(groups) if any(axis.role is Role.FEATURE for axis in group)), len(groups) - 1
        )
        if padded[place] != 1 and not self._alike_along(other, others, place - len(own)):
            return None
        if len(groups[place]) > 1:
            return None
        if value.width == 1 and padded[place] != 1:
            return None
        height = min(value.rows // value.parts.size, value.stacked)
        along = tuple(tuple(a.key for a in group) for group, size in zip(groups, padded, strict=True) if size > 1)
        return value.mapped(
            lambda terms, index: self.tagged(terms, "scale", name, along, index), balanced=frozenset(), height=height
        )

    def _alike_along(self, value: Value, shape: Shape, place: int) -> bool:
        """Whether all entries along an axis are equal."""
        value, groups = self.grouped(value, shape)
        if value.kind is not Kind.KNOWN or [axis.role for axis in groups[place]] != [Role.FEATURE]:
            return False
        return all(
            isinstance(generator.map, Tile) and generator.map.rows == 1
            for terms in value.terms()
            for generator in terms.values()
        )


def _constant(value: Value) -> bool:
    """Whether a value is the same on all rows, workers and backward passes."""
    return value.kind is Kind.KNOWN and all(
        c.constant and not generator.local for terms in value.terms() for c, generator in terms.items()
    )


def _diagonal(width: int, key: Hashable, *, local: bool = False) -> Map:
    return Unknown(width, width, key, diagonal=True, local=local)

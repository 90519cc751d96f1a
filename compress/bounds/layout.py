"""Regroups the axes of values, and puts features on the axis that is asked for."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compress.bounds.maps import Centre, Embed, Map, Scale, Select, Tile, Unknown
from compress.bounds.spaces import Algebra, Terms
from compress.bounds.values import (
    MOST_PIECES,
    ONE,
    Axis,
    Groups,
    Kind,
    Role,
    Value,
    factored,
    sizes,
    split,
    varies,
)

_MANY = 1 << 40
"""More rows than any batch has."""


class Layout:
    """Regroups, aligns and converts values; one for each traced graph."""

    def __init__(self, algebra: Algebra) -> None:
        self.algebra = algebra
        self._count = 0

    def fresh(self) -> int:
        """A name that nothing else has."""
        self._count += 1
        return self._count

    # --- making values ------------------------------------------------------------------------------------

    def anything(
        self, shape: Sequence[int], name: Hashable, label: str, axes: Sequence[Axis] = (), height: int | None = None
    ) -> Value:
        """A tensor of which nothing is known."""
        found = tuple(replace(axis, role=Role.ROW) for axis in axes if axis.size > 1) or tuple(
            Axis(position, size) for position, size in enumerate(shape) if size > 1
        )
        rows = math.prod(shape)
        return Value(found, Kind.ANY, rows if height is None else height, label, name=name)

    def blank(self, shape: Sequence[int], kind: Kind, label: str, name: Hashable = None) -> Value:
        """Zeros, or one number in every entry, known by its name."""
        axes = tuple(Axis(position, size) for position, size in enumerate(shape) if size > 1)
        if kind is Kind.UNIFORM and name is None:
            name = ("number", self.fresh())
        return Value(axes, kind, 0 if kind is Kind.ZERO else 1, label, name=name)

    def single(self, axes: Sequence[Axis], terms: Terms, height: int, label: str) -> Value:
        parts = np.empty((), dtype=object)
        parts[()] = terms
        return Value(tuple(axes), Kind.KNOWN, height, label, parts=parts)

    def any_rows(self, width: int, label: str) -> Value:
        """Rows of one width of which nothing is known, not even how many."""
        shape = (_MANY, width)
        return self.features(self.anything(shape, ("rows", self.fresh()), label), shape, 1)

    # --- axes of a shape ------------------------------------------------------------------------------------

    def grouped(self, value: Value, shape: Sequence[int], at: int | None = None) -> tuple[Value, Groups]:
        """The value with its axes split so that each axis of `shape` is a run of them.

        Features of width 1 fit any axis of size 1 next to them; `at` says which one they are wanted on.
        """
        found, groups = self._runs(value, shape)
        feature = found.feature
        if at is None or feature is None or feature.size > 1:
            return found, groups
        at %= len(shape)
        place = next(i for i, group in enumerate(groups) if any(axis is feature for axis in group))
        if place == at or any(size > 1 for size in shape[min(place, at) : max(place, at) + 1]):
            return found, groups
        groups[place] = [axis for axis in groups[place] if axis is not feature]
        groups[at] = [*groups[at], feature]
        return replace(found, axes=tuple(axis for group in groups for axis in group)), groups

    def _runs(self, value: Value, shape: Sequence[int]) -> tuple[Value, Groups]:
        groups: Groups = []
        pending = list(value.axes)
        cuts: dict[int, list[int]] = {}  # position among the value's axes: sizes to split it into
        position = 0
        for size in shape:
            group: list[Axis] = []
            left = size
            while left > 1 or (pending and size == 1 and pending[0].size == 1 and not group):
                axis = pending.pop(0)
                if axis.size > left:
                    if axis.size % left:
                        return self._ungroupable(value, shape)
                    cuts.setdefault(position, []).append(left)
                    group.append(replace(axis, size=left))
                    pending.insert(0, replace(axis, size=axis.size // left))
                    left = 1
                    continue
                if left % axis.size:
                    return self._ungroupable(value, shape)
                if position in cuts:
                    cuts[position].append(axis.size)
                position += 1
                group.append(axis)
                left //= axis.size
            groups.append(group)
        if pending and groups:  # features of width 1 that the shape does not show
            groups[-1] += pending
        if not cuts:
            return value, groups
        for place in sorted(cuts, reverse=True):
            value = self._cut(value, place, cuts[place])
        return self._runs(value, shape)

    def _ungroupable(self, value: Value, shape: Sequence[int]) -> tuple[Value, Groups]:
        found = self.anything(shape, ("regrouped", self.fresh()), value.label)
        if value.kind in (Kind.ZERO, Kind.UNIFORM):
            found = replace(found, kind=value.kind, name=value.name)
        return found, [[axis for axis in found.axes if axis.key == position] for position in range(len(shape))]

    def _cut(self, value: Value, place: int, into: Sequence[int]) -> Value:
        """Split one axis; features split into pieces, of which the last axis keeps the features."""
        axis = value.axes[place]
        made = split(axis, into)
        axes = [*value.axes[:place], *made, *value.axes[place + 1 :]]
        balanced = value.balanced
        if axis.key in balanced:
            balanced = (balanced - {axis.key}) | {part.key for part in made}
        value = replace(value, axes=tuple(axes), balanced=balanced)
        if value.kind is not Kind.KNOWN or axis.role is Role.ROW:
            return value
        before = sum(other.role is Role.PIECE for other in axes[:place])
        if axis.role is Role.PIECE:
            shape = value.parts.shape
            return replace(value, parts=value.parts.reshape(*shape[:before], *into, *shape[before + 1 :]))
        width, count = into[-1], axis.size // into[-1]
        if count > MOST_PIECES:
            return self.unknown(value)
        roles = [*(replace(part, role=Role.PIECE) for part in made[:-1]), made[-1]]
        axes[place : place + len(made)] = roles
        parts = np.empty((*value.parts.shape[:before], *into[:-1], *value.parts.shape[before:]), dtype=object)
        for index in np.ndindex(value.parts.shape):
            for inner in np.ndindex(*into[:-1]):
                start = int(np.ravel_multi_index(inner, tuple(into[:-1]))) * width if inner else 0
                parts[(*index[:before], *inner, *index[before:])] = self.through(
                    value.parts[index], Select(axis.size, width, start)
                )
        return replace(value, axes=tuple(axes), parts=parts)

    def through(self, terms: Terms, map: Map, label: str | None = None) -> Terms:
        """Every generator seen through one more map."""
        return {c: self.algebra.image(generator, map, label) for c, generator in terms.items()}

    def tagged(self, terms: Terms, *tag: Hashable, constant_stays: bool = False) -> Terms:
        """The coefficients through a linear map of the rows."""
        return {
            c if c.constant and constant_stays else self.algebra.tagged(c, *tag): generator
            for c, generator in terms.items()
        }

    def settled(self, value: Value) -> Value:
        """Where all there is has been reached, nothing is left out: no slack."""
        everything = all(
            any(generator.generic and generator.limit == generator.width for generator in terms.values())
            for terms in value.terms()
        )
        return replace(value, slack=0.0, proven=True) if everything and value.slack else value

    # --- conversions ----------------------------------------------------------------------------------------

    def unknown(self, value: Value) -> Value:
        """Forget what is known of the features."""
        axes = tuple(replace(axis, role=Role.ROW) for axis in value.axes if axis.size > 1)
        return replace(
            value,
            axes=axes,
            kind=Kind.ANY,
            height=sizes(axes),  # along another axis the rank may be another
            parts=np.empty((), dtype=object),
            name=("forgotten", self.fresh()),
            slack=0.0,
        )

    def features(self, value: Value, shape: Sequence[int], position: int) -> Value:
        """The value with the features on one axis of `shape`, as a single FEATURE axis."""
        position %= len(shape)
        value, groups = self.grouped(value, shape, position)
        group = groups[position]
        if len(group) == 1 and group[0].role is Role.FEATURE and value.kind is Kind.KNOWN:
            return value
        if value.kind is Kind.KNOWN and any(axis.role is Role.FEATURE for axis in group):
            return self._merged(value, groups, position)
        if value.kind is Kind.KNOWN:
            value = self.unknown(value)
            value, groups = self.grouped(value, shape)
            group = groups[position]
        key = tuple(axis.key for axis in group)
        size = shape[position]
        made = Axis(key[0] if len(key) == 1 else ("joined", key), size, Role.FEATURE)
        axes = [axis for other in groups[:position] for axis in other]
        axes += [made, *(axis for other in groups[position + 1 :] for axis in other)]
        algebra = self.algebra
        balanced = value.balanced
        terms: dict[Any, Any] = {}
        if value.kind is Kind.UNIFORM:
            factor, bare = factored(value.name)
            number = algebra.image(algebra.one, Scale(1, 1, factor))
            c = algebra.root("number", bare, label=value.label) if varies(value) else algebra.constant
            if bare != ONE and not varies(value):
                number = algebra.image(number, Unknown(1, 1, ("number", bare), diagonal=True))
            terms = {c: algebra.image(number, Tile(1, size), "a mean or a sum")}
        elif value.kind is Kind.ANY:
            everything = algebra.source(("all", size), size, size, value.label)
            if balanced and balanced == set(key):
                everything = algebra.image(everything, Centre(size, size), value.label)
            factor, bare = factored(value.name)
            everything = algebra.image(everything, Scale(size, size, factor))
            terms = {algebra.root("any", bare, key, size, label=value.label): everything}
        if balanced & set(key):
            balanced = frozenset()
        rows = sizes(axes) // size
        return replace(
            self.single(axes, terms, min(value.height, rows), value.label), balanced=balanced, slack=value.slack
        )

    def _merged(self, value: Value, groups: Groups, position: int) -> Value:
        """Put a run of axes, features among them, together as the features."""
        group = groups[position]
        place = next(i for i, axis in enumerate(group) if axis.role is Role.FEATURE)
        algebra = self.algebra
        rows_before = sizes([axis for axis in group[:place] if axis.role is Role.ROW])
        rows_after = sizes([axis for axis in group[place + 1 :] if axis.role is Role.ROW])
        pieces = [axis for axis in group if axis.role is Role.PIECE]
        kinds = [axis.role for axis in group]
        if pieces and rows_before * rows_after > 1 and not _pieces_outside(kinds):
            return self.features(self.unknown(value), [sizes(g) for g in groups], position)
        keys = tuple(axis.key for axis in group)
        if rows_before * rows_after > 1:

            def spread(terms: Terms, index: Any) -> Terms:
                found = {}
                for c, generator in terms.items():
                    if c.constant:
                        tile = Tile(generator.width, generator.width * rows_before * rows_after, rows_after)
                        found[c] = algebra.image(generator, tile)
                    else:
                        found[algebra.tagged(c, "kron", keys, rows_before, rows_after)] = algebra.kron(
                            generator, rows_before, rows_after
                        )
                return found

            value = value.mapped(spread)
        width = group[place].size * rows_before * rows_after
        total = sizes(group)
        flat = [axis for other in groups for axis in other]
        made = Axis(("joined", keys), total, Role.FEATURE)
        axes = [axis for other in groups[:position] for axis in other]
        axes += [made, *(axis for other in groups[position + 1 :] for axis in other)]
        if pieces:
            ordered = [axis.key for axis in flat if axis.role is Role.PIECE]
            mine = [ordered.index(axis.key) for axis in pieces]
            strides = [sizes(group[group.index(axis) + 1 :]) for axis in pieces]
            step = sizes([axis for axis in group[place + 1 :] if axis.role is Role.PIECE])
            moved = np.moveaxis(value.parts, mine, range(-len(mine), 0))
            outer = moved.shape[: moved.ndim - len(mine)]
            parts = np.empty(outer, dtype=object)
            for index in np.ndindex(outer):
                inner = np.ndindex(*(axis.size for axis in pieces))
                parts[index] = algebra.add(
                    *(
                        self.through(
                            moved[index + i],
                            Embed(width, total, sum(a * b for a, b in zip(i, strides, strict=True)), step),
                        )
                        for i in inner
                    )
                )
            value = replace(value, parts=parts)
        balanced = frozenset() if value.balanced & set(keys) else value.balanced
        height = min(value.height * rows_before * rows_after, sizes(axes) // total)
        return replace(value, axes=tuple(axes), height=height, balanced=balanced)


def _pieces_outside(roles: Sequence[Role]) -> bool:
    """Whether rows stand next to the features, and pieces around them."""
    trimmed = list(roles)
    while trimmed and trimmed[0] is Role.PIECE:
        trimmed.pop(0)
    while trimmed and trimmed[-1] is Role.PIECE:
        trimmed.pop()
    return Role.PIECE not in trimmed

"""Parts and wholes: slices, what is put beside zeros, and what is joined."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compress.bounds.maps import Embed, Select
from compress.bounds.rows import Rows
from compress.bounds.values import (
    MOST_PIECES,
    Axis,
    Kind,
    Role,
    Shape,
    Value,
)


class Parts(Rows):
    """Takes values apart along an axis, and puts them together."""

    def picked(self, value: Value, shape: Shape, position: int, start: int, stop: int, step: int = 1) -> Value:
        """Entries start, start + step, … below stop of one axis, which stays."""
        position %= len(shape)
        count = len(range(start, stop, step))
        if count == shape[position]:
            return value
        left = [*shape[:position], count, *shape[position + 1 :]]
        if value.kind in (Kind.ZERO, Kind.UNIFORM):
            return replace(self.blank(left, value.kind, value.label, value.name), height=value.height)
        value, groups = self.grouped(value, shape)
        group = groups[position]
        keys = {axis.key for axis in group}
        if len(group) != 1:
            if value.kind is Kind.KNOWN and any(axis.role is Role.FEATURE for axis in group):
                return self.picked(self.features(value, shape, position), shape, position, start, stop, step)
            found = self.unknown(value)
            return self.anything(left, ("picked", found.name, start, stop, step), value.label)
        axis = group[0]
        height = min(value.height, math.prod(left))
        balanced = frozenset[Hashable]() if value.balanced & keys else value.balanced
        place = value.axes.index(axis)
        made = replace(axis, size=count)
        axes = [*value.axes[:place], made, *value.axes[place + 1 :]]
        if count == 1 and axis.role is not Role.FEATURE:
            axes.pop(place)
        if value.kind is Kind.ANY:
            name = ("picked", value.name, axis.key, start, stop, step)
            stochastic = frozenset[Hashable]() if value.stochastic & keys else value.stochastic
            changed = replace(value, axes=tuple(axes), name=name, height=height, balanced=balanced)
            return replace(changed, stochastic=stochastic)
        changes: dict[str, Any] = {"height": height, "balanced": balanced}
        if axis.role is Role.FEATURE:
            select = Select(axis.size, count, start, step)
            return value.mapped(lambda terms, index: self.through(terms, select), axes, **changes)
        if axis.role is Role.PIECE:
            nth = sum(other.role is Role.PIECE for other in value.axes[:place])
            parts = value.parts.take(range(start, stop, step), axis=nth)
            if count == 1:
                whole = np.empty(parts.shape[:nth] + parts.shape[nth + 1 :], dtype=object)
                for index in np.ndindex(whole.shape):
                    whole[index] = parts[(*index[:nth], 0, *index[nth:])]
                parts = whole
            return replace(value, axes=tuple(axes), parts=parts, **changes)
        tag = ("select", axis.key, start) if count == 1 else ("slice", axis.key, start, stop, step)
        return value.mapped(lambda terms, index: self.tagged(terms, *tag, constant_stays=True), axes, **changes)

    def placed(self, value: Value, shape: Shape, position: int, size: int, start: int, step: int = 1) -> Value:
        """The value at some entries of a longer axis, zeros elsewhere: the adjoint of `picked`."""
        position %= len(shape)
        count = shape[position]
        if count == size:
            return value
        to = [*shape[:position], size, *shape[position + 1 :]]
        if value.kind is Kind.ZERO:
            return self.blank(to, Kind.ZERO, value.label)
        if value.kind is Kind.UNIFORM:
            value = self.features(value, shape, len(shape) - 1)
        value, groups = self.grouped(value, shape)
        group = groups[position]
        if value.kind is Kind.KNOWN and any(axis.role is Role.FEATURE for axis in group):
            if len(group) > 1:
                value = self.features(value, shape, position)
            feature = value.feature
            assert feature is not None
            axes = [Axis(feature.key, size, Role.FEATURE) if axis is feature else axis for axis in value.axes]
            embed = Embed(count, size, start, step)
            return value.mapped(lambda terms, index: self.through(terms, embed), axes)
        key: Hashable = group[0].key if len(group) == 1 else position
        if not group and any(axis.key == key for axis in value.axes):
            key = ("placed", position)
        before = sum(len(other) for other in groups[:position])
        keep = value.axes[:before], value.axes[before + len(group) :]
        if value.kind is Kind.KNOWN and count == 1 and size <= MOST_PIECES:
            axes = [*keep[0], Axis(key, size, Role.PIECE), *keep[1]]
            nth = sum(axis.role is Role.PIECE for axis in keep[0])
            parts = np.empty((*value.parts.shape[:nth], size, *value.parts.shape[nth:]), dtype=object)
            for index in np.ndindex(parts.shape):
                parts[index] = value.parts[(*index[:nth], *index[nth + 1 :])] if index[nth] == start else {}
            return replace(value, axes=tuple(axes), parts=parts, balanced=frozenset())
        if value.kind is Kind.ANY or any(axis.role is Role.PIECE for axis in group) or len(group) > 1:
            found = self.anything(to, ("placed", self.fresh()), value.label)
            axes = [*keep[0], Axis(key, size), *keep[1]]
            # Zeros leave a sum as it is.
            kept = value.balanced if not value.balanced & {axis.key for axis in group} else frozenset[Hashable]()
            rows = tuple(replace(axis, role=Role.ROW) for axis in axes if axis.size > 1)
            return replace(found, axes=rows, balanced=kept)
        axes = [*keep[0], Axis(key, size), *keep[1]]
        return value.mapped(
            lambda terms, index: self.tagged(terms, "placed", key, start, step, size), axes, balanced=frozenset()
        )

    def joined(
        self, values: Sequence[Value], shapes: Sequence[Shape], position: int, name: Hashable, label: str
    ) -> Value:
        """Values one after another along an axis."""
        if len(values) == 1:
            return values[0]
        position %= len(shapes[0])
        total = sum(shape[position] for shape in shapes)
        shape = [*shapes[0][:position], total, *shapes[0][position + 1 :]]
        if all(value.kind is Kind.ZERO for value in values):
            return self.blank(shape, Kind.ZERO, label)
        along_features = any(
            value.kind is Kind.KNOWN
            and any(axis.role is Role.FEATURE for axis in self.grouped(value, own)[1][position])
            for value, own in zip(values, shapes, strict=True)
        )
        if along_features:
            start, moved = 0, []
            for value, own in zip(values, shapes, strict=True):
                value = self.features(value, own, position)
                moved.append(self.placed(value, own, position, total, start))
                start += own[position]
            return self.add(moved, [shape] * len(moved), shape, label)
        return self._stacked(values, shapes, shape, position, name, label)

    def _stacked(
        self, values: Sequence[Value], shapes: Sequence[Shape], shape: Shape, position: int, name: Hashable, label: str
    ) -> Value:
        """Rows of several values: all their terms, whichever row they belong to."""
        lined = None
        short = [[*own[:position], 1, *own[position + 1 :]] for own in shapes]
        if any(value.kind is Kind.KNOWN for value in values):
            heads = [
                value if value.kind is Kind.ZERO else self._without(value, own, position, (name, i))
                for i, (value, own) in enumerate(zip(values, shapes, strict=True))
            ]
            lined = self.aligned(heads, short, short[0])
        if lined is None:
            return self.anything(shape, name, label)
        first = lined[0]
        heights = sum(
            _height_in_line(value, line, math.prod(own)) for value, line, own in zip(values, lined, shapes, strict=True)
        )
        before = sum(len(group) for group in self.grouped(first, short[0])[1][:position])
        changes: dict[str, Any] = {
            "height": heights,
            "balanced": frozenset(),
            "slack": max(value.slack for value in values),
            "label": label,
        }
        if all(own[position] == 1 for own in shapes) and len(values) <= MOST_PIECES:
            nth = sum(axis.role is Role.PIECE for axis in first.axes[:before])
            axis = Axis(("stacked", name), len(values), Role.PIECE)
            pieces = np.empty((*first.parts.shape[:nth], len(values), *first.parts.shape[nth:]), dtype=object)
            for i, value in enumerate(lined):
                for index in np.ndindex(first.parts.shape):
                    pieces[(*index[:nth], i, *index[nth:])] = value.parts[index]
            return replace(first, axes=(*first.axes[:before], axis, *first.axes[before:]), parts=pieces, **changes)
        parts = np.empty(first.parts.shape, dtype=object)
        for index in np.ndindex(parts.shape):
            constants = [{c: g for c, g in value.parts[index].items() if c.constant} for value in lined]
            alike = all(constant == constants[0] for constant in constants)
            parts[index] = self.algebra.add(
                *(
                    self.tagged(value.parts[index], "stacked", name, i, constant_stays=alike and i == 0)
                    if not alike or i == 0
                    else self.tagged(self.algebra.zero_less(value.parts[index]), "stacked", name, i)
                    for i, value in enumerate(lined)
                )
            )
        axes = (*first.axes[:before], Axis(("stacked", name), shape[position]), *first.axes[before:])
        return replace(first, axes=axes, parts=parts, **changes)

    def _without(self, value: Value, own: Shape, position: int, name: Hashable) -> Value:
        """Any one index of an axis: its terms are those of all."""
        if own[position] == 1:
            return value
        value, groups = self.grouped(value, own)
        if any(axis.role is not Role.ROW for axis in groups[position]):
            return self._without(self.unknown(value), own, position, name)
        gone = {axis.key for axis in groups[position]}
        return replace(
            value,
            axes=tuple(axis for axis in value.axes if axis.key not in gone),
            balanced=frozenset(),
            name=("any of", value.name, name) if value.kind is Kind.ANY else value.name,
        )


def _height_in_line(value: Value, line: Value, entries: int) -> int:
    """The height of a value whose rows were put in line with others."""
    if value.kind is Kind.ZERO:
        return 0
    if value.kind is Kind.KNOWN and value.feature == line.feature:
        return value.height * (line.parts.size // max(1, value.parts.size) or 1)
    return entries // line.width

"""Fewer, more and other rows."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compress.bounds.alignment import Alignment
from compress.bounds.maps import Scale, Tile, Total
from compress.bounds.spaces import Terms
from compress.bounds.values import (
    Axis,
    Kind,
    Role,
    Shape,
    Value,
    sizes,
    times,
)


class Rows(Alignment):
    """Copies, sums, another order and mixtures of rows."""

    def expanded(self, value: Value, shape: Shape, to: Shape) -> Value:
        """Broadcast to a shape: new rows are copies, and features of width 1 are repeated."""
        if tuple(shape) == tuple(to):
            return value
        padded = [1] * (len(to) - len(shape)) + list(shape)
        if value.kind in (Kind.ZERO, Kind.UNIFORM):
            return replace(self.blank(to, value.kind, value.label, value.name), height=value.height)
        value, groups = self.grouped(value, padded)
        axes: list[Axis] = []
        width = 1
        for position, (size, own) in enumerate(zip(to, padded, strict=True)):
            group = groups[position]
            if own == size or size == 1:
                axes += group
            elif group and group[0].role is Role.FEATURE:
                width = size
                axes.append(Axis(("tiled", position), size, Role.FEATURE))
            else:
                taken = {axis.key for axis in value.axes}
                axes.append(Axis(("expanded", self.fresh()) if position in taken else position, size))
        if width > 1:
            return value.mapped(lambda terms, index: self.through(terms, Tile(1, width)), axes)
        return replace(value, axes=tuple(axes))

    def reduced(self, value: Value, shape: Shape, positions: Sequence[int], name: Hashable, *, mean: bool) -> Value:
        """The sum or the mean over axes of `shape`, which then have size 1."""
        positions = sorted(position % len(shape) for position in positions)
        left = [1 if position in positions else size for position, size in enumerate(shape)]
        count = math.prod(shape) // math.prod(left)
        if count == 1:
            return value
        if value.kind in (Kind.ZERO, Kind.UNIFORM):
            number = times(value.name, 1 if mean else count)
            return replace(self.blank(left, value.kind, value.label, number), height=value.height)
        value, groups = self.grouped(value, shape)
        gone = [axis for position in positions for axis in groups[position]]
        keys = frozenset(axis.key for axis in gone)
        height = min(value.height, math.prod(left))
        if value.balanced and value.balanced <= keys:
            return self.blank(left, Kind.ZERO, value.label)
        balanced = frozenset[Hashable]() if value.balanced & keys else value.balanced
        axes = tuple(axis for axis in value.axes if axis.key not in keys)
        if value.kind is Kind.ANY:
            reduced = ("reduced", value.name, keys)
            found = replace(value, axes=axes, name=reduced, height=height, balanced=balanced, stochastic=frozenset())
            return self.scaled(found, 1 / count) if mean else found
        rows = tuple(axis.key for axis in gone if axis.role is Role.ROW)
        ordered = [axis for axis in value.axes if axis.role is Role.PIECE]
        summed = tuple(i for i, axis in enumerate(ordered) if axis.key in keys)
        features = next((axis for axis in gone if axis.role is Role.FEATURE), None)
        number = sizes([axis for axis in gone if axis.role is Role.ROW])

        def change(terms: Terms) -> Terms:
            if features is not None:
                terms = self.through(terms, Total(features.size, 1))
            found: dict[Any, Any] = {}
            for c, generator in terms.items():
                if rows and c.constant:
                    found[c] = self.algebra.image(generator, Scale(generator.width, generator.width, number))
                elif rows:
                    found[self.algebra.tagged(c, "summed", rows)] = generator
                else:
                    found[c] = generator
            return found

        moved = np.moveaxis(value.parts, summed, range(-len(summed), 0)) if summed else value.parts
        outer = moved.shape[: moved.ndim - len(summed)]
        parts = np.empty(outer, dtype=object)
        for index in np.ndindex(outer):
            inner = moved[index] if summed else None
            pieces = inner.ravel() if inner is not None else [moved[index]]
            parts[index] = self.algebra.add(*(change(terms) for terms in pieces))
        if features is not None:
            place = value.axes.index(features)
            before = sum(axis.key not in keys for axis in value.axes[:place])
            axes = (*axes[:before], Axis(features.key, 1, Role.FEATURE), *axes[before:])
        found = replace(value, axes=axes, parts=parts, height=height, balanced=balanced)
        return self.scaled(found, 1 / count) if mean else found

    def permuted(self, value: Value, shape: Shape, order: Sequence[int]) -> Value:
        value, groups = self.grouped(value, shape)
        moved = [axis for position in order for axis in groups[position]]
        before = [axis.key for axis in value.axes if axis.role is Role.PIECE]
        after = [axis.key for axis in moved if axis.role is Role.PIECE]
        parts = value.parts.transpose([before.index(key) for key in after]) if after else value.parts
        return replace(value, axes=tuple(moved), parts=parts)

    def in_pieces(self, value: Value, shape: Shape, position: int) -> Value:
        """Each index of an axis of rows with terms of its own."""
        value, groups = self.grouped(value, shape)
        group = groups[position]
        if value.kind is not Kind.KNOWN or len(group) != 1 or group[0].role is not Role.ROW:
            return value
        axis = group[0]
        place = value.axes.index(axis)
        nth = sum(other.role is Role.PIECE for other in value.axes[:place])
        parts = np.empty((*value.parts.shape[:nth], axis.size, *value.parts.shape[nth:]), dtype=object)
        for index in np.ndindex(parts.shape):
            terms = value.parts[(*index[:nth], *index[nth + 1 :])]
            parts[index] = self.tagged(terms, "select", axis.key, index[nth], constant_stays=True)
        axes = (*value.axes[:place], replace(axis, role=Role.PIECE), *value.axes[place + 1 :])
        height = min(value.height * axis.size, value.rows // parts.size)
        return replace(value, axes=axes, parts=parts, height=height)

    def gathered(self, value: Value, shape: Shape, position: int, name: Hashable) -> Value:
        """The pieces of an axis as rows, each of which may hold the terms of any piece."""
        value, groups = self.grouped(value, shape)
        pieces = [axis for axis in groups[position] if axis.role is Role.PIECE]
        ordered = [axis.key for axis in value.axes if axis.role is Role.PIECE]
        mine = [ordered.index(axis.key) for axis in pieces]
        moved = np.moveaxis(value.parts, mine, range(-len(mine), 0))
        outer = moved.shape[: moved.ndim - len(mine)]
        parts = np.empty(outer, dtype=object)
        for index in np.ndindex(outer):
            found: dict[Any, Any] = {}
            for i in np.ndindex(*(axis.size for axis in pieces)):
                for c, generator in moved[index + i].items():
                    # Equal generators of different pieces are one: their coefficients add up.
                    root = self.algebra.root("gathered", name, index, generator.index, label=c.label)
                    found.setdefault(root, generator)
            parts[index] = found
        axes = [replace(axis, role=Role.ROW) if axis in pieces else axis for axis in value.axes]
        height = value.height * sizes(pieces)
        return replace(value, axes=tuple(axes), parts=parts, balanced=frozenset(), height=height)

    def rows_changed(
        self,
        value: Value,
        axes: Sequence[Axis],
        *tag: Hashable,
        constant_stays: bool = False,
        height: int | None = None,
    ) -> Value:
        """Rows mixed by a matrix named by `tag`, which may differ from piece to piece; `axes` are the new ones."""
        if value.kind is not Kind.KNOWN:
            return replace(value, axes=tuple(axes), name=("mixed", tag, value.name), balanced=frozenset())
        found = value.mapped(
            lambda terms, index: self.tagged(terms, *tag, index, constant_stays=constant_stays),
            axes,
            balanced=frozenset(),
        )
        rows = found.rows // max(1, found.parts.size)
        return replace(found, height=min(rows, value.stacked if height is None else height))

    def mapped_features(self, value: Value, change: Callable[[Terms], Terms], width: int, key: Hashable) -> Value:
        """Another matrix of features for the same rows; the value must have a FEATURE axis."""
        feature = value.feature
        assert feature is not None
        axes = [Axis(key, width, Role.FEATURE) if axis is feature else axis for axis in value.axes]
        return value.mapped(lambda terms, index: change(terms), axes)

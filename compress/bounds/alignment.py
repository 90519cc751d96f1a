"""Values on the same rows: what a sum of tensors needs."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from compress.bounds.layout import Layout
from compress.bounds.maps import Scale, Tile
from compress.bounds.values import (
    MOST_PIECES,
    Axis,
    Kind,
    Role,
    Shape,
    Value,
    times,
)


class Alignment(Layout):
    """Brings values to the same axes, and adds them."""

    def aligned(self, values: Sequence[Value], shapes: Sequence[Shape], shape: Shape) -> list[Value] | None:
        """The values, broadcast to `shape`, with the same axes; None where their axes do not fit."""
        if not shape:
            return self.aligned(values, [(1,)] * len(values), (1,))
        padded = [[1] * (len(shape) - len(own)) + list(own) for own in shapes]
        pairs = [self.grouped(value, own) for value, own in zip(values, padded, strict=True)]
        refined: list[list[int]] = []
        for position, size in enumerate(shape):
            marks = {1, size}
            for (_, groups), own in zip(pairs, padded, strict=True):
                if own[position] > 1:
                    marks |= set(accumulate((axis.size for axis in groups[position]), lambda a, b: a * b))
            ordered = sorted(marks)
            steps = [b // a for a, b in zip(ordered, ordered[1:], strict=False) if b % a == 0]
            if math.prod(steps) != size:
                return None
            refined.append(steps or [1])
        atoms = [size for steps in refined for size in steps]
        own_atoms = [
            [size if own[position] > 1 else 1 for position, steps in enumerate(refined) for size in steps]
            for own in padded
        ]
        found = [self.grouped(value, own) for (value, _), own in zip(pairs, own_atoms, strict=True)]
        place = self._feature_place(found, own_atoms)
        if place is None:
            return None
        placed = [
            self._placed(value, groups, own, place, atoms[place])
            for (value, groups), own in zip(found, own_atoms, strict=True)
        ]
        return self._same_axes(placed, own_atoms, atoms, place)

    @staticmethod
    def _feature_place(found: Sequence[tuple[Value, Any]], own_atoms: Sequence[Shape]) -> int | None:
        best = None
        for (value, groups), own in zip(found, own_atoms, strict=True):
            if value.kind is Kind.KNOWN:
                for position, group in enumerate(groups):
                    if own[position] > 1 and any(axis.role is Role.FEATURE for axis in group):
                        return position
                best = len(own) - 1
        return best

    def _placed(self, value: Value, groups: Any, own: Shape, place: int, width: int) -> Value:
        """The value with its features at one place, repeated if it has but one there."""
        if value.kind is Kind.KNOWN and own[place] == 1:
            if value.width > 1:
                value = self.unknown(value)
                value = self.features(value, own, place)
            elif not any(axis.role is Role.FEATURE for axis in groups[place]):
                feature = value.feature
                assert feature is not None
                order = [axis for axis in value.axes if axis is not feature]
                before = sum(len([a for a in group if a is not feature]) for group in groups[:place])
                value = replace(value, axes=(*order[:before], feature, *order[before:]))
        else:
            value = self.features(value, own, place)
        if own[place] == 1 and width > 1:
            feature = value.feature
            assert feature is not None
            axes = [Axis(("tiled", place), width, Role.FEATURE) if a is feature else a for a in value.axes]
            value = value.mapped(lambda terms, index: self.through(terms, Tile(1, width)), axes)
        return value

    def _same_axes(
        self, values: Sequence[Value], own_atoms: Sequence[Shape], atoms: Shape, place: int
    ) -> list[Value] | None:
        slots: list[list[Axis | None]] = []  # for each value, its axis at each atom, or None
        for value, own in zip(values, own_atoms, strict=True):
            pending = list(value.axes)
            slots.append(
                [pending.pop(0) if position == place or own[position] > 1 else None for position in range(len(atoms))]
            )
        common: list[Axis | None] = []
        for position in range(len(atoms)):
            present = [slot[position] for slot in slots if slot[position] is not None]
            piece = any(axis.role is Role.PIECE for axis in present if axis is not None)
            first = present[0] if present else None
            if first is not None and any(axis is not None and axis.key == first.key for axis in common):
                first = replace(first, key=("copy", first.key, self.fresh()))
            common.append(replace(first, role=Role.PIECE) if first is not None and piece else first)
        shape = tuple(axis.size for axis in common if axis is not None and axis.role is Role.PIECE)
        if math.prod(shape) > MOST_PIECES:
            return None
        axes = tuple(axis for axis in common if axis is not None)
        return [self._with_axes(value, slot, common, axes, shape) for value, slot in zip(values, slots, strict=True)]

    def _with_axes(
        self, value: Value, slot: Sequence[Axis | None], common: Sequence[Axis | None], axes: Any, shape: Any
    ) -> Value:
        renames = {
            own.key: target.key
            for own, target in zip(slot, common, strict=True)
            if own is not None and target is not None and own.key != target.key and own.role is Role.ROW
            if target.role is not Role.PIECE
        }
        parts = np.empty(shape, dtype=object)
        pairs = [(own, target) for own, target in zip(slot, common, strict=True) if target is not None]
        for index in np.ndindex(shape):
            own_index, picks, at = [], [], 0
            for own, target in pairs:
                if target.role is not Role.PIECE:
                    continue
                if own is not None and own.role is Role.PIECE:
                    own_index.append(index[at])
                elif own is not None:
                    picks.append((own.key, index[at]))
                at += 1
            terms = value.parts[tuple(own_index)]
            for key, i in picks:
                terms = self.tagged(terms, "select", key, i, constant_stays=True)
            if renames:  # all at once: two axes may change their names with one another
                terms = self.tagged(terms, "rename", frozenset(renames.items()), constant_stays=True)
            parts[index] = terms
        keys = {own.key: target.key for own, target in pairs if own is not None}
        balanced = frozenset(keys.get(key, key) for key in value.balanced)
        more = math.prod(shape) // max(1, value.parts.size)  # rows that now stand side by side
        return replace(value, axes=axes, parts=parts, balanced=balanced, height=value.height * more)

    def add(self, values: Sequence[Value], shapes: Sequence[Shape], shape: Shape, label: str) -> Value:
        """The sum of values, each broadcast to `shape`."""
        kept = [(v, s) for v, s in zip(values, shapes, strict=True) if v.kind is not Kind.ZERO]
        if not kept:
            return self.blank(shape, Kind.ZERO, label)
        if len(kept) == 1 and tuple(kept[0][1]) == tuple(shape):
            return kept[0][0]
        aligned = None
        if any(v.kind is Kind.KNOWN for v, _ in kept):
            aligned = self.aligned([v for v, _ in kept], [s for _, s in kept], shape)
        if aligned is None:
            found = self.anything(shape, ("sum", self.fresh()), label)
            owner = next((v for v, s in kept if tuple(s) == tuple(shape)), None)
            return found if owner is None else replace(found, axes=self.unknown(owner).axes)
        first = aligned[0]
        parts = np.empty(first.parts.shape, dtype=object)
        for index in np.ndindex(parts.shape):
            parts[index] = self.algebra.add(*(value.parts[index] for value in aligned))
        balanced = frozenset[Hashable]()
        if all(value.balanced for value in aligned):
            balanced = frozenset().union(*(value.balanced for value in aligned))
        height = min(first.rows // parts.size, sum(value.height for value in aligned))
        slack = max(v.slack for v, _ in kept)
        return replace(first, parts=parts, height=height, balanced=balanced, slack=slack, label=label)

    def scaled(self, value: Value, factor: float) -> Value:
        if factor == 1 or value.kind is Kind.ZERO:
            return value
        if value.kind is not Kind.KNOWN:
            kind = value.kind if factor else Kind.ZERO
            return replace(value, kind=kind, name=times(value.name, factor), stochastic=frozenset())
        width = value.width
        return value.mapped(lambda terms, index: self.through(terms, Scale(width, width, factor)))

"""Convolutions: rows are positions, and a kernel reads several of them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from compress.bounds.maps import Embed, Kernel, Select, Unknown
from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape
from compress.bounds.rules.linear import constant_added
from compress.bounds.spaces import Coefficients, Terms
from compress.bounds.values import Axis, Role, Value

_MOST_GROUPS = 64


@dataclass(frozen=True)
class _Geometry:
    """Which positions of the longer side each position of the shorter one reads: stride·p + offset."""

    stride: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]  # one for each tap of the kernel
    long: tuple[int, ...]
    short: tuple[int, ...]

    def inside(self, offset: Sequence[int]) -> bool:
        """Whether a tap never reads outside."""
        axes = zip(self.stride, offset, self.long, self.short, strict=True)
        return all(o >= 0 and s * (short - 1) + o < long for s, o, long, short in axes)

    def reaches(self, offset: Sequence[int]) -> bool:
        """Whether a tap reads inside anywhere; one that meets nothing but padding adds nothing."""
        axes = zip(self.stride, offset, self.long, self.short, strict=True)
        return all(any(0 <= s * p + o < long for p in range(short)) for s, o, long, short in axes)

    @property
    def taps(self) -> list[tuple[int, tuple[int, ...]]]:
        """The taps that read anything: their numbers in the kernel, and their offsets."""
        return [(tap, offset) for tap, offset in enumerate(self.offsets) if self.reaches(offset)]

    @property
    def padded(self) -> bool:
        return not all(self.inside(offset) for offset in self.offsets)

    @property
    def one_to_one(self) -> bool:
        return self.long == self.short and set(self.stride) == {1}


def _all(call: Call, argument: str, count: int) -> tuple[int, ...]:
    found = call[argument]
    values = [found] if isinstance(found, int) else list(found)
    return tuple(values * count if len(values) == 1 else values)


def _geometry(call: Call, kernel: Sequence[int], long: Sequence[int], short: Sequence[int]) -> _Geometry:
    count = len(kernel)
    stride, dilation = _all(call, "stride", count), _all(call, "dilation", count)
    if call["padding"] == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    elif call["padding"] == "valid":
        padding = (0,) * count
    else:
        padding = _all(call, "padding", count)
    taps = itertools.product(*(range(size) for size in kernel))
    offsets = tuple(tuple(t * d - p for t, d, p in zip(tap, dilation, padding, strict=True)) for tap in taps)
    return _Geometry(stride, offsets, tuple(long), tuple(short))


# --- positions ----------------------------------------------------------------------------------------------------


def ready(call: Call, value: Value, of: tuple[int, ...]) -> tuple[Value, list[Axis], tuple[Any, ...]]:
    """Features on axis 1, and a name for each axis of positions."""
    value = call.ops.features(value, of, 1)
    value, groups = call.ops.grouped(value, of, 1)
    if any(axis.role is not Role.ROW for group in groups[2:] for axis in group):
        value, groups = call.ops.grouped(call.ops.features(call.ops.unknown(value), of, 1), of, 1)
    keys: list[Any] = []
    taken = {axis.key for axis in value.axes}
    for i, group in enumerate(groups[2:]):
        key = group[0].key if len(group) == 1 else ("joined", tuple(axis.key for axis in group))
        if not group:
            key = ("position", i) if ("position", i) not in taken else ("position", call.name, call.ops.fresh())
        keys.append(key)
    return value, groups[0], tuple(keys)


def position_axes(
    samples: Sequence[Axis], keys: Sequence[Any], channels: int, to: Sequence[int], name: Any
) -> list[Axis]:
    positions = [Axis(key, size) for key, size in zip(keys, to, strict=True) if size > 1]
    return [*samples, Axis(name, channels, Role.FEATURE), *positions]


def _read(call: Call, terms: Terms, geometry: _Geometry, offset: tuple[int, ...], keys: tuple[Any, ...]) -> Terms:
    """The coefficients that one tap reads; where it reads outside there are zeros, so constants start to vary."""
    algebra = call.algebra
    if not geometry.inside(offset):
        return call.ops.tagged(terms, "read", keys, geometry.long, geometry.short, geometry.stride, offset)
    found = {}
    for c, generator in terms.items():
        found[c if c.constant else _shifted(call, c, keys, geometry, offset)] = generator
    return algebra.add(found)


def _shifted(
    call: Call, c: Coefficients, keys: tuple[Any, ...], geometry: _Geometry, offset: tuple[int, ...]
) -> Coefficients:
    """Shifts compose: reading at s·p + o what was read at s'·p + o' is reading at s'·s·p + s'·o + o'."""
    stride = geometry.stride
    if c.parent is not None and isinstance(c.tag, tuple) and c.tag[:2] == ("shift", keys):
        _, _, before, start = c.tag
        stride = tuple(a * b for a, b in zip(before, stride, strict=True))
        offset = tuple(a * b + o for a, b, o in zip(before, offset, start, strict=True))
        c = c.parent
    elif geometry.one_to_one and not any(offset):
        return c
    return call.algebra.tagged(c, "shift", keys, stride, offset)


def _written(call: Call, terms: Terms, geometry: _Geometry, offset: tuple[int, ...], keys: tuple[Any, ...]) -> Terms:
    """The coefficients that one tap writes to: the adjoint of reading."""
    if geometry.one_to_one and not any(offset):
        return terms
    return call.ops.tagged(terms, "write", keys, geometry.long, geometry.short, geometry.stride, offset)


# --- the two directions of a kernel -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A convolution, seen from its long side (which is read) and its short side (which has the sums)."""

    call: Call
    weight: fx.Node
    groups: int
    swapped: bool  # the long side is the output: a transposed convolution
    geometry: _Geometry

    @property
    def channels(self) -> tuple[int, int]:
        """Of the long side and of the short side."""
        first, second = shape(self.weight)[:2]
        return second * self.groups, first

    def _kernel(self, tap: int, group: int, back: bool) -> Any:
        long, short = (channels // self.groups for channels in self.channels)
        name = self.call.tracer.parameter(self.weight)
        rows, columns = (short, long) if back else (long, short)
        if name is None:
            return Unknown(rows, columns, ("kernel", self.weight.name, tap, group, back), local=True)
        return Kernel(rows, columns, name, tap, group, self.groups, transposed=back)

    def moved(self, value: Value, of: tuple[int, ...], to: tuple[int, ...], *, back: bool, label: str) -> Value:
        """Long to short, or back."""
        call, algebra = self.call, self.call.algebra
        value, samples, keys = ready(call, value, of)
        wide_in, wide_out = self.channels[::-1] if back else self.channels
        each_in, each_out = wide_in // self.groups, wide_out // self.groups
        move = _written if back else _read

        def change(terms: Terms, index: Any) -> Terms:
            found = []
            for tap, offset in self.geometry.taps:
                there = move(call, terms, self.geometry, offset, keys)
                for group in range(self.groups):
                    part = call.ops.through(there, Select(wide_in, each_in, group * each_in))
                    part = call.ops.through(part, self._kernel(tap, group, back), label)
                    found.append(call.ops.through(part, Embed(each_out, wide_out, group * each_out)))
            return algebra.add(*found)

        if self.groups > _MOST_GROUPS or value.parts.ndim:
            axes = position_axes(samples, keys, wide_out, to[2:], ("out", call.name, back))
            return call.ops.anything(to, (call.name, back, call.ops.fresh()), label, axes)
        axes = position_axes(samples, keys, wide_out, to[2:], ("out", call.name, back))
        keep = back and not self.geometry.padded and value.balanced and set(keys) <= value.balanced
        found = value.mapped(change, axes, balanced=value.balanced if keep else frozenset(), label=label)
        height = found.rows if back or len(self.geometry.offsets) > 1 else min(found.rows, value.height)
        return call.ops.settled(replace(found, height=height))

    def use(self, long: Value, of_long: tuple[int, ...], short: Value, of_short: tuple[int, ...]) -> None:
        """G = shortᵀ · patches of the long side, for each group."""
        call = self.call
        name = call.tracer.parameter(self.weight)
        assert name is not None
        taps = len(self.geometry.offsets)
        rows = of_short[0] * math.prod(of_short[2:])
        long, samples, keys = ready(call, long, of_long)
        short, _, _ = ready(call, short, of_short)
        each_long, each_short = (channels // self.groups for channels in self.channels)
        wide = each_long * taps
        if self.groups > _MOST_GROUPS or long.parts.ndim or short.parts.ndim:
            tall = (rows * self.groups, wide), (rows * self.groups, self.channels[1])
            inputs, adjoint = (
                call.ops.features(call.ops.anything(of, (call.name, call.ops.fresh()), call.title), of, 1)
                for of in tall
            )
            call.tracer.use(name, inputs, adjoint, rows * self.groups)
            return
        axes = position_axes(samples, keys, wide, of_short[2:], ("patches", call.name))
        for group in range(self.groups):

            def patches(terms: Terms, index: Any, group: int = group) -> Terms:
                mine = call.ops.through(terms, Select(self.channels[0], each_long, group * each_long))
                found = []
                for tap, offset in self.geometry.taps:
                    there = _read(call, mine, self.geometry, offset, keys)
                    found.append(call.ops.through(there, Embed(each_long, wide, tap, taps)))
                return call.algebra.add(*found)

            def own(terms: Terms, index: Any, group: int = group) -> Terms:
                mine = call.ops.through(terms, Select(self.channels[1], each_short, group * each_short))
                return call.ops.through(mine, Embed(each_short, self.channels[1], group * each_short))

            inputs = long.mapped(patches, axes, balanced=frozenset(), height=rows)
            call.tracer.use(name, inputs, short.mapped(own), rows)


def _layer(call: Call) -> _Layer | None:
    source, weight = call["input"], call["weight"]
    swapped = "transpose" in str(call.node.target)
    count = len(shape(weight)) - 2
    if not is_float(weight) or len(shape(source)) != count + 2:
        return None
    sides = shape(source)[2:], call.shape[2:]
    long, short = sides[::-1] if swapped else sides
    geometry = _geometry(call, shape(weight)[2:], long, short)
    return _Layer(call, weight, call["groups"], swapped, geometry)


def _convolution(call: Call) -> Value | None:
    layer = _layer(call)
    if layer is None:
        return None
    source = call["input"]
    label = call.label(call.shape[1])
    found = layer.moved(call.tracer.value(source), shape(source), call.shape, back=layer.swapped, label=label)
    bias = call["bias"]
    if bias is None:
        return found
    name = call.tracer.parameter(bias)
    found = call.ops.features(found, call.shape, 1)
    return constant_added(call, found, name) if name else call.ops.unknown(found)


def _convolution_back(call: Call, adjoint: Value) -> Gradients:
    layer = _layer(call)
    assert layer is not None
    source, weight = call["input"], call["weight"]
    own = shape(source)
    sides = ((call.tracer.value(source), own), (adjoint, call.shape))
    (long, of_long), (short, of_short) = sides[::-1] if layer.swapped else sides
    if call.tracer.parameter(weight) is not None:
        layer.use(long, of_long, short, of_short)
    else:
        yield weight, call.full(weight)
    if is_float(call["bias"]):
        total = call.ops.features(adjoint, call.shape, 1)
        gone = [position for position in range(len(call.shape)) if position != 1]
        yield call["bias"], call.ops.reduced(total, call.shape, gone, call.name, mean=False)
    label = f"the input of {call.title} ({own[1]} channels)"
    yield source, layer.moved(adjoint, call.shape, own, back=not layer.swapped, label=label)


define(
    [aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding]
    + [aten.conv3d.padding, aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input],
    _convolution,
    _convolution_back,
    "an image for each tap of the kernel, at shifted positions; shifts compose, so stacked layers read each "
    "position once; "
    "what is constant stays unless padding cuts it; A holds the patches, each group is a use; back: an image for "
    "each tap",
    "out[p] = Σ_taps x[s·p + o] W_o",
)

"""Pooling, padding and resizing of positions."""

import math
from dataclasses import replace
from typing import Any

from torch import fx

from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape
from compress.bounds.rules.convolution import position_axes, ready
from compress.bounds.values import Kind, Role, Value


def _pool_like(
    call: Call, node: fx.Node, value: Value, of: tuple[int, ...], to: tuple[int, ...], *tag: Any, stays: bool
) -> Value:
    if value.kind is not Kind.KNOWN or len(of) < 3:
        same = value.axes if math.prod(to) == math.prod(of) else ()
        return call.ops.anything(to, (call.name, *tag, call.ops.fresh()), call.title, same)
    _, groups = call.ops.grouped(value, of, 1)
    if not any(axis.role is Role.FEATURE for axis in groups[1]):
        return call.ops.anything(to, (call.name, *tag, call.ops.fresh()), call.title)
    value, samples, keys = ready(call, value, of)
    axes = position_axes(samples, keys, value.width, to[2:], ("out", call.name, *tag))
    return call.ops.rows_changed(value, axes, "pool", call.name, *tag, constant_stays=stays)


def _pool(call: Call) -> Value | None:
    source = call.node.args[0]
    if not is_float(source) or not isinstance(source, fx.Node):
        return None
    counted = call.get("count_include_pad")
    stays = not (counted and any(_listed(call.get("padding", 0)))) and call.get("divisor_override") is None
    return _pool_like(call, source, call.tracer.value(source), shape(source), call.shape, stays=stays)


def _listed(found: Any) -> list[int]:
    return [found] if isinstance(found, int) else list(found)


def _pool_back(call: Call, adjoint: Value) -> Gradients:
    source = call.node.args[0]
    assert isinstance(source, fx.Node)
    adjoint = adjoint if adjoint.kind is not Kind.UNIFORM else call.ops.features(adjoint, call.shape, 1)
    yield source, _pool_like(call, source, adjoint, call.shape, shape(source), "back", stays=False)


define(
    [aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool1d.default]
    + [aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.upsample_nearest1d.vec]
    + [aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, aten.upsample_bilinear2d.vec]
    + [aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec, aten.upsample_bicubic2d.vec],
    _pool,
    _pool_back,
    "same space; what is constant stays",
    "each new row is a fixed average of rows, all channels alike",
)


def _is_identity(call: Call) -> bool:
    """Whether a max pool meets one position alone, as behind the last of many pools."""
    source, op = call.node.args[0], str(call.node.target)
    if "pool" not in op or not isinstance(source, fx.Node) or len(shape(source)) < 3:
        return False
    outputs = call.node.meta["val"]
    pooled = tuple((outputs if hasattr(outputs, "shape") else outputs[0]).shape)
    padded = "adaptive" not in op and any(_listed(call.get("padding", 0)))
    return math.prod(shape(source)[2:]) == 1 and pooled == tuple(shape(source)) and not padded


def _max(call: Call) -> Any:
    outputs = call.node.meta["val"]
    single = hasattr(outputs, "shape")
    if _is_identity(call):
        source = call.node.args[0]
        assert isinstance(source, fx.Node)
        found = call.tracer.value(source)
    else:
        found = call.ops.anything(tuple(outputs.shape) if single else tuple(outputs[0].shape), call.name, call.title)
    return found if single else [found, None]


def _max_back(call: Call, adjoint: Any) -> Gradients:
    source = call.node.args[0]
    assert isinstance(source, fx.Node)
    if _is_identity(call):
        yield source, adjoint[0] if isinstance(adjoint, (list, tuple)) else adjoint
        return
    yield source, call.full(source)


define(
    [aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_max_pool2d.default]
    + [aten.max_pool2d_with_indices.default, aten.max.dim, aten.min.dim],
    _max,
    _max_back,
    "full; same where it pools a single position",
    "each channel takes another position",
)


def _padding(call: Call) -> list[tuple[int, int, int]]:
    """(axis, before, after) of each padded axis."""
    pads, own = list(call["pad"]), len(call.shape)
    found = []
    for i in range(len(pads) // 2):
        if pads[2 * i] or pads[2 * i + 1]:
            found.append((own - 1 - i, pads[2 * i], pads[2 * i + 1]))
    return found


def _pad(call: Call) -> Value | None:
    source = call["self"]
    if not is_float(source):
        return None
    mode, fill = call.get("mode", "constant"), call["value"] if call.get("value") is not None else 0
    value, own = call.tracer.value(source), list(shape(source))
    if value.kind is not Kind.KNOWN or fill or any(min(b, a) < 0 for _, b, a in _padding(call)):
        return call.ops.anything(call.shape, call.name, call.title)
    for axis, before, after in _padding(call):
        if mode == "constant":
            value = call.ops.placed(value, own, axis, own[axis] + before + after, before)
        else:
            value, groups = call.ops.grouped(value, own)
            if len(groups[axis]) != 1 or groups[axis][0].role is not Role.ROW:
                return call.ops.anything(call.shape, call.name, call.title)
            axes = [replace(a, size=a.size + before + after) if a is groups[axis][0] else a for a in value.axes]
            value = call.ops.rows_changed(
                value, axes, "pad", mode, groups[axis][0].key, before, after, constant_stays=True
            )
        own[axis] += before + after
    return value


def _pad_back(call: Call, adjoint: Value) -> Gradients:
    mode, own = call.get("mode", "constant"), list(call.shape)
    if any(min(before, after) < 0 for _, before, after in _padding(call)):
        yield call["self"], call.full(call["self"])
        return
    for axis, before, after in _padding(call):
        if mode == "constant":
            adjoint = call.ops.picked(adjoint, own, axis, before, own[axis] - after)
        else:
            adjoint, groups = call.ops.grouped(adjoint, own)
            if adjoint.kind is not Kind.KNOWN or len(groups[axis]) != 1 or groups[axis][0].role is not Role.ROW:
                adjoint = call.full(call["self"])
                break
            left = own[axis] - before - after
            axes = [
                replace(a, size=left) if a is groups[axis][0] else a
                for a in adjoint.axes
                if left > 1 or a is not groups[axis][0]
            ]
            adjoint = call.ops.rows_changed(adjoint, axes, "unpad", mode, groups[axis][0].key, before, after)
        own[axis] -= before + after
    yield call["self"], adjoint


define(
    [aten.pad.default, aten.constant_pad_nd.default],
    _pad,
    _pad_back,
    "zeros: same space, a constant starts to vary; copies: same space",
    "new rows are zero, or copies",
)

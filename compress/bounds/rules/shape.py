"""Ops that rearrange entries: views, transposes, parts and wholes."""

from dataclasses import replace
from typing import Any

from torch import fx

from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, nothing, shape
from compress.bounds.values import Kind, Role, Value


def _first(call: Call) -> fx.Node:
    source: fx.Node = call.node.args[0]  # type: ignore[assignment]
    return source


def _same(call: Call) -> Value | None:
    return call.tracer.value(_first(call)) if is_float(_first(call)) else None


def _same_back(call: Call, adjoint: Value) -> Gradients:
    yield _first(call), adjoint


SAME = define(
    [aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.to.dtype]
    + [aten.type_as.default, aten.lift_fresh_copy.default],
    _same,
    _same_back,
    "same space",
    "every entry stays as it is; rounding to another type counts as roundoff",
)
define(
    [aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints]
    + [aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default],
    _same,
    _same_back,
    "same entries on other axes: features that are split become pieces, each an image under a selection; pieces and "
    "positions that join the features become I ⊗ space",
    "the order of entries in memory stays",
)
DETACH = define([aten.detach.default], _same, nothing, "same space; no adjoint", "autograd stops here")


def order(call: Call) -> list[int]:
    """Which axis of its input each axis of a transpose is."""
    source = shape(_first(call))
    axes = list(range(len(source)))
    if call.node.target is aten.permute.default:
        return [position % len(source) for position in call["dims"]]
    if call.node.target in (aten.t.default, aten.numpy_T.default):
        return axes[::-1]
    a, b = (call[name] % len(source) for name in ("dim0", "dim1"))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _permute(call: Call) -> Value:
    return call.ops.permuted(call.tracer.value(_first(call)), shape(_first(call)), order(call))


def _permute_back(call: Call, adjoint: Value) -> Gradients:
    found = order(call)
    inverse = [found.index(position) for position in range(len(found))]
    yield _first(call), call.ops.permuted(adjoint, call.shape, inverse)


TRANSPOSES = (aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default)
define(
    TRANSPOSES,
    _permute,
    _permute_back,
    "same space on the moved axis",
    "rows are the same rows in another order; axes keep their names",
)


def _expand(call: Call) -> Value:
    return call.ops.expanded(call.tracer.value(_first(call)), shape(_first(call)), call.shape)


def _expand_back(call: Call, adjoint: Value) -> Gradients:
    yield _first(call), unexpanded(call, adjoint, call.shape, shape(_first(call)))


def unexpanded(call: Call, adjoint: Value, of: tuple[int, ...], to: tuple[int, ...]) -> Value:
    """The adjoint of what was broadcast from shape `to` to `of`: its sum over all copies."""
    padded = [1] * (len(of) - len(to)) + list(to)
    gone = [position for position, size in enumerate(padded) if size == 1 and of[position] > 1]
    return call.ops.reduced(adjoint, of, gone, call.name, mean=False) if gone else adjoint


define(
    [aten.expand.default, aten.expand_as.default],
    _expand,
    _expand_back,
    "copies of the rows; back: sums over the copies",
    "a copy adds no new row",
)


def _reduce_positions(call: Call) -> list[int]:
    source = shape(_first(call))
    found = call.get("dim")
    if found is None or found == []:
        return list(range(len(source)))
    return [position % len(source) for position in ([found] if isinstance(found, int) else found)]


def _reduce(call: Call) -> Value | None:
    if not is_float(_first(call)):
        return None
    mean = call.node.target in _MEANS
    return call.ops.reduced(
        call.tracer.value(_first(call)), shape(_first(call)), _reduce_positions(call), call.name, mean=mean
    )


def _reduce_back(call: Call, adjoint: Value) -> Gradients:
    source = shape(_first(call))
    kept = [1 if position in _reduce_positions(call) else size for position, size in enumerate(source)]
    spread = call.ops.expanded(adjoint, kept, source)
    count = 1
    for position in _reduce_positions(call):
        count *= source[position]
    yield _first(call), call.ops.scaled(spread, 1 / count if call.node.target in _MEANS else 1)


_MEANS = (aten.mean.default, aten.mean.dim)
define(
    [*_MEANS, aten.sum.default, aten.sum.dim_IntList],
    _reduce,
    _reduce_back,
    "over rows: same space; over features: image under a column of ones; back: copies",
    "a fixed combination of rows, or a fixed map of features",
)


# --- parts ---------------------------------------------------------------------------------------------------


def _range(call: Call) -> tuple[int, int, int, int]:
    source = shape(_first(call))
    position = call["dim"] % len(source)
    size = source[position]
    if call.node.target in (aten.select.int, aten.select_scatter.default):
        index = call["index"] % size
        return position, index, index + 1, 1
    start, stop = call["start"], call["end"]
    start = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    stop = size if stop is None else max(stop + size, 0) if stop < 0 else min(stop, size)
    return position, start, max(stop, start), call["step"]


def _pick(call: Call) -> Value | None:
    if not is_float(_first(call)):
        return None
    position, start, stop, step = _range(call)
    return call.ops.picked(call.tracer.value(_first(call)), shape(_first(call)), position, start, stop, step)


def _pick_back(call: Call, adjoint: Value) -> Gradients:
    source = shape(_first(call))
    position, start, stop, step = _range(call)
    own = [*source[:position], len(range(start, stop, step)), *source[position + 1 :]]
    yield _first(call), call.ops.placed(adjoint, own, position, source[position], start, step)


define(
    [aten.slice.Tensor, aten.select.int, aten.narrow.default],
    lambda call: None if call.node.target is aten.narrow.default else _pick(call),
    _pick_back,
    "of rows: same space; of features: image under a selection; of pieces: that piece; back: zeros elsewhere",
    "a subset of the rows, or a fixed map",
)


def _lengths(call: Call) -> tuple[int, list[int]]:
    source = shape(_first(call))
    position = call["dim"] % len(source)
    outputs = call.node.meta["val"]
    if call.node.target is aten.unbind.int:
        return position, [1] * source[position]
    return position, [int(output.shape[position]) for output in outputs]


def _split(call: Call) -> list[Value] | None:
    if not is_float(_first(call)):
        return None
    position, lengths = _lengths(call)
    value, source, start, found = call.tracer.value(_first(call)), shape(_first(call)), 0, []
    for length in lengths:
        found.append(call.ops.picked(value, source, position, start, start + length))
        start += length
    return found


def _split_back(call: Call, adjoints: list[Value | None]) -> Gradients:
    source = shape(_first(call))
    position, lengths = _lengths(call)
    start, moved = 0, []
    for length, adjoint in zip(lengths, adjoints, strict=True):
        own = [*source[:position], length, *source[position + 1 :]]
        if adjoint is not None:
            moved.append(call.ops.placed(adjoint, own, position, source[position], start))
        start += length
    yield _first(call), call.ops.add(moved, [source] * len(moved), source, call.title)


define(
    [aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int],
    _split,
    _split_back,
    "each part as a slice",
    "a subset of the rows, or a fixed map",
)


# --- wholes --------------------------------------------------------------------------------------------------


def _tensors(call: Call) -> tuple[list[fx.Node], list[tuple[int, ...]], int]:
    # An empty tensor of one axis may be joined with anything, and adds nothing.
    nodes = [node for node in call["tensors"] if shape(node) != (0,)]
    shapes = [shape(node) for node in nodes]
    position = call["dim"]
    if call.node.target is aten.stack.default:
        position %= len(shapes[0]) + 1
        shapes = [(*own[:position], 1, *own[position:]) for own in shapes]
    return nodes, shapes, position % len(shapes[0])


def _join(call: Call) -> Value | None:
    nodes, shapes, position = _tensors(call)
    if not all(is_float(node) for node in nodes) or len({len(own) for own in shapes}) > 1:
        return None
    return call.ops.joined([call.tracer.value(node) for node in nodes], shapes, position, call.name, call.label())


def _join_back(call: Call, adjoint: Value) -> Gradients:
    nodes, shapes, position = _tensors(call)
    start = 0
    for node, own in zip(nodes, shapes, strict=True):
        yield node, call.ops.picked(adjoint, call.shape, position, start, start + own[position])
        start += own[position]


define(
    [aten.cat.default, aten.stack.default],
    _join,
    _join_back,
    "of features: the sum of the embedded spaces; of rows: all their spaces together, a stack keeping them as pieces",
    "a row of the whole is a row of a part, or made of one of each",
)


def _scatter(call: Call) -> Value | None:
    base, source = call["self"], call["src"]
    if not (is_float(base) and is_float(source)):
        return None
    position, start, stop, step = _range(call)
    if start == 0 and stop == call.shape[position] and step == 1:
        return call.value("src")
    own = [*call.shape[:position], len(range(start, stop, step)), *call.shape[position + 1 :]]
    written = call.ops.placed(call.value("src"), own, position, call.shape[position], start, step)
    return call.ops.add(
        [_cleared(call, call.value("self"), call.shape), written], [call.shape] * 2, call.shape, call.label()
    )


def _cleared(call: Call, value: Value, of: tuple[int, ...]) -> Value:
    """The value with zeros where the call writes."""
    position, start, stop, step = _range(call)
    if value.kind is Kind.ZERO:
        return value
    if value.kind is not Kind.KNOWN:
        return call.ops.anything(of, ("cleared", call.ops.fresh()), value.label, value.axes)
    value, groups = call.ops.grouped(value, of)
    group = groups[position]
    if len(group) != 1 or group[0].role is Role.FEATURE:
        return call.ops.unknown(value)
    axis = group[0]
    if axis.role is Role.ROW:
        return value.mapped(
            lambda terms, index: call.ops.tagged(terms, "cleared", axis.key, start, stop, step), balanced=frozenset()
        )
    nth = [other.key for other in value.axes if other.role is Role.PIECE].index(axis.key)
    written = range(start, stop, step)
    return value.mapped(lambda terms, index: {} if index[nth] in written else terms, balanced=frozenset())


def _scatter_back(call: Call, adjoint: Value) -> Gradients:
    position, start, stop, step = _range(call)
    if call.shape[position] <= 1024 and adjoint.kind is Kind.KNOWN:
        adjoint = call.ops.in_pieces(adjoint, call.shape, position)
    yield call["src"], call.ops.picked(adjoint, call.shape, position, start, stop, step)
    yield call["self"], _cleared(call, adjoint, call.shape)


define(
    [aten.select_scatter.default, aten.slice_scatter.default],
    _scatter,
    _scatter_back,
    "what is written, and what is left of what it is written into; one index at a time: pieces",
    "an in-place write, functionalised",
)


def _copy(call: Call) -> Value | None:
    return call.ops.expanded(call.value("src"), shape(call["src"]), call.shape) if is_float(call["src"]) else None


def _copy_back(call: Call, adjoint: Value) -> Gradients:
    yield call["src"], unexpanded(call, adjoint, call.shape, shape(call["src"]))


define([aten.copy.default], _copy, _copy_back, "the space of what is copied", "the copy has its values")


def _rearranged(call: Call) -> Value | None:
    value = _same(call)
    if value is None or value.kind is not Kind.KNOWN:
        return value if value is None or value.kind is not Kind.ANY else replace(value, name=(call.name,))
    source = shape(_first(call))
    positions = call["dims"]
    value, groups = call.ops.grouped(value, source)
    if any(axis.role is not Role.ROW for position in positions for axis in groups[position % len(source)]):
        return call.ops.unknown(value)
    return call.ops.rows_changed(
        value, value.axes, *_tag(call, groups, positions), constant_stays=True, height=value.height
    )


def _tag(call: Call, groups: Any, positions: Any) -> tuple[Any, ...]:
    keys = tuple(tuple(axis.key for axis in groups[position]) for position in positions)
    return (str(call.node.target), keys, str(call.get("shifts")))


def _rearranged_back(call: Call, adjoint: Value) -> Gradients:
    if adjoint.kind is not Kind.KNOWN:
        other = replace(adjoint, name=("back", call.name, adjoint.name))
        yield _first(call), other if adjoint.kind is Kind.ANY else adjoint
        return
    adjoint, groups = call.ops.grouped(adjoint, call.shape)
    positions = call["dims"]
    if any(axis.role is not Role.ROW for position in positions for axis in groups[position % len(call.shape)]):
        yield _first(call), call.ops.unknown(adjoint)
        return
    balanced = adjoint.balanced
    tag = ("back", *_tag(call, groups, positions))
    found = call.ops.rows_changed(adjoint, adjoint.axes, *tag, constant_stays=True, height=adjoint.height)
    yield _first(call), replace(found, balanced=balanced)


define(
    [aten.flip.default, aten.roll.default],
    lambda call: _rearranged(call) if call["dims"] else None,
    _rearranged_back,
    "of rows: same space; of features: full",
    "the same rows in another order",
)

"""Products of matrices: layers, and data times data."""

import math
from dataclasses import replace
from typing import Any

from torch import fx

from compress.bounds.maps import Linear, Map, Row, Unknown
from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape
from compress.bounds.rules.shape import unexpanded
from compress.bounds.values import Axis, Kind, Role, Value, less_constants, sizes


def _parsed(call: Call) -> tuple[fx.Node, fx.Node, fx.Node | None, bool] | None:
    """Input, weight, bias, and whether the weight is stored as (in, out)."""
    target = call.node.target
    if target is aten.linear.default:
        return call["input"], call["weight"], call["bias"], False
    if target is aten.addmm.default:
        plain = call["beta"] == 1 and call["alpha"] == 1
        return (call["mat1"], call["mat2"], call["self"], True) if plain else None
    other = "other" if target is aten.matmul.default else "mat2"
    return call["self"], call[other], None, True


def _map(call: Call, weight: fx.Node, inward: bool, back: bool) -> Map | None:
    """The weight as a map of features, forward or back; None for a weight that depends on data."""
    sides = shape(weight)
    rows, columns = sides if inward else sides[::-1]
    if back:
        rows, columns = columns, rows
    found = call.tracer.weight(weight)
    if found is not None:
        name, transposed = found
        return Linear(rows, columns, name, transposed=(transposed != inward) != back)
    if call.tracer.shared(weight):
        return Unknown(rows, columns, ("computed", weight.name, inward, back))
    return None


def biased(call: Call, value: Value, bias: Any, of: tuple[int, ...]) -> Value | None:
    """With a vector of features added to every row; `of` is the value's shape, features last."""
    if bias is None:
        return value
    name = call.tracer.parameter(bias)
    if name is None or math.prod(shape(bias)) != of[-1] or shape(bias)[-1] != of[-1]:
        return call.ops.add([value, call.tracer.value(bias)], [of, shape(bias)], of, call.label())
    return constant_added(call, value, name)


def constant_added(call: Call, value: Value, name: str) -> Value:
    algebra = call.algebra
    term = {algebra.constant: algebra.image(algebra.one, Row(1, value.width, name))}
    found = value.mapped(lambda terms, index: algebra.add(terms, term))
    # The constant may vanish with the other coefficients, which sum to zero, but not the sum.
    height = min(value.rows // max(1, value.parts.size), value.height + 1)
    return replace(found, height=height, balanced=frozenset())


def _linear(call: Call) -> Value | None:
    parsed = _parsed(call)
    if parsed is None:
        return None
    source, weight, bias, inward = parsed
    if not (is_float(source) and is_float(weight)) or len(shape(weight)) != 2:
        return _matmul(call) if parsed[3] and len(shape(weight)) > 0 else None
    if call.tracer.weight(source) is not None and call.tracer.weight(weight) is None:
        return _matmul(call)
    map = _map(call, weight, inward, back=False)
    value = call.ops.features(call.tracer.value(source), shape(source), -1)
    width = call.shape[-1]
    if map is None:
        return _matmul(call) if inward and bias is None else _through_data(call, value, bias, width)
    made = call.ops.mapped_features(
        value, lambda terms: call.ops.through(terms, map, call.label()), width, ("out", call.name)
    )
    return biased(call, replace(call.ops.settled(made), label=call.label()), bias, call.shape)


def _through_data(call: Call, value: Value, bias: Any, width: int) -> Value:
    """The weight depends on the data: nothing is known of where rows go."""
    axes = [axis for axis in value.axes if axis.role is not Role.FEATURE]
    axes.append(Axis(("out", call.name), width))
    return call.ops.anything(call.shape, call.name, call.label(), axes)


def _linear_back(call: Call, adjoint: Value) -> Gradients:
    parsed = _parsed(call)
    assert parsed is not None
    source, weight, bias, inward = parsed
    plain = is_float(source) and is_float(weight) and len(shape(weight)) == 2
    left = plain and call.tracer.weight(source) is not None and call.tracer.weight(weight) is None
    map = _map(call, weight, inward, back=True) if plain and not left else None
    if map is None and inward and bias is None:
        yield from _matmul_back(call, adjoint)
        return
    delta = call.ops.features(adjoint, call.shape, -1)
    value = call.ops.features(call.tracer.value(source), shape(source), -1)
    if bias is not None and is_float(bias):
        yield bias, unexpanded(call, delta, call.shape, shape(bias))
    rows = sizes([Axis(0, size) for size in shape(source)[:-1]])
    found = call.tracer.weight(weight)
    if found is not None:
        # A parameter stored as (in, out) has its second axis on the adjoint's side.
        sides = (delta, value) if inward != found[1] else (value, delta)
        call.tracer.use(found[0], *sides, rows)
    else:
        yield weight, _weight_adjoint(call, weight, value, delta, inward)
    if map is None:
        yield source, call.full(source)
        return
    width = shape(source)[-1]
    label = f"the input of {call.title} ({width} wide)"
    feature = value.feature
    assert feature is not None
    back = call.ops.mapped_features(delta, lambda terms: call.ops.through(terms, map, label), width, feature.key)
    yield source, call.ops.settled(back)


def _weight_adjoint(call: Call, weight: fx.Node, value: Value, delta: Value, inward: bool) -> Value:
    """ΔᵀA as a tensor: its rows lie in the space of A (of Δ where the weight is stored the other way)."""
    of, other = (delta, value) if inward else (value, delta)
    terms: dict[Any, Any] = {}
    for number, part in enumerate(of.terms()):
        for c, generator in part.items():
            terms[call.algebra.tagged(c, "product", call.name, number)] = generator
    feature = of.feature
    assert feature is not None
    axes = [Axis(("rows of", weight.name), other.width), Axis(("columns of", weight.name), of.width, Role.FEATURE)]
    return call.ops.single(axes, terms, min(value.stacked, delta.stacked, other.width), call.label())


# --- data times data -------------------------------------------------------------------------------------------


def _factors(call: Call) -> tuple[fx.Node, fx.Node] | None:
    other = "other" if call.node.target is aten.matmul.default else "mat2"
    left, right = call["self"], call.get(other)
    return (left, right) if is_float(left) and is_float(right) else None


def batch_axes(call: Call, value: Value, own: tuple[int, ...], to: tuple[int, ...]) -> Value:
    """Broadcast all but the last two axes to those of `to`."""
    return call.ops.expanded(value, own, (*to[:-2], *own[-2:]))


def mixed(
    call: Call, value: Value, own: tuple[int, ...], rows: list[Axis], *tag: Any, constant_stays: bool = False
) -> Value:
    """Features of `value` on its last axis; its rows (the last but one axis) mixed into other rows."""
    value, groups = call.ops.grouped(call.ops.features(value, own, -1), own, -1)
    if any(axis.role is not Role.ROW for axis in groups[-2]):
        # Rows of several pieces are mixed: each new row may hold terms of all of them.
        value, groups = call.ops.grouped(call.ops.gathered(value, own, len(own) - 2, (call.name, *tag)), own, -1)
    taken = {axis.key for group in groups[:-2] for axis in group}
    fresh = [
        replace(axis, role=Role.ROW, key=("mixed", call.name, axis.key) if axis.key in taken else axis.key)
        for axis in rows
        if axis.role is not Role.FEATURE or axis.size > 1
    ]
    rows_keys = {axis.key for axis in fresh}
    last = [replace(a, key=("columns", call.name, a.key)) if a.key in rows_keys else a for a in groups[-1]]
    axes = [axis for group in groups[:-2] for axis in group] + fresh + last
    return call.ops.rows_changed(value, axes, "mix", call.name, *tag, constant_stays=constant_stays)


def rows_of(call: Call, value: Value, own: tuple[int, ...], position: int) -> list[Axis]:
    """The axes that an axis of the shape consists of."""
    return call.ops.grouped(value, own)[1][position]


def _matmul(call: Call) -> Value | None:
    nodes = _factors(call)
    if nodes is None:
        return None
    left, right = nodes
    sides = shape(left), shape(right)
    if min(len(side) for side in sides) < 2:
        return call.ops.anything(call.shape, call.name, call.label())
    weights, value = call.tracer.value(left), call.tracer.value(right)
    if value.kind is Kind.ZERO or weights.kind is Kind.ZERO:
        return call.ops.blank(call.shape, Kind.ZERO, call.label())
    if weights.kind is Kind.UNIFORM and sides[0][-1] == 1:
        return call.ops.product(weights, value, sides, call.shape, (left.name, right.name), call.label())
    value = batch_axes(call, value, sides[1], call.shape)
    own = (*call.shape[:-2], *sides[1][-2:])
    rows = rows_of(call, weights, sides[0], -2)
    stochastic = weights.stochastic and weights.stochastic == {
        axis.key for axis in rows_of(call, weights, sides[0], -1)
    }
    return replace(mixed(call, value, own, rows, constant_stays=bool(stochastic)), label=call.label())


def _matmul_back(call: Call, adjoint: Value) -> Gradients:
    nodes = _factors(call)
    assert nodes is not None
    left, right = nodes
    sides = shape(left), shape(right)
    if adjoint.kind is Kind.ZERO:
        for node, side in zip(nodes, sides, strict=True):
            yield node, call.ops.blank(side, Kind.ZERO, call.label())
        return
    if min(len(side) for side in sides) < 2:
        for node in nodes:
            yield node, call.full(node)
        return
    values = call.tracer.value(left), call.tracer.value(right)
    if values[0].kind is Kind.UNIFORM and sides[0][-1] == 1:
        names = ("adjoint of", call.name), left.name
        back = call.ops.product(adjoint, values[0], (call.shape, sides[0]), call.shape, names, call.label())
        yield left, call.full(left)
        yield right, unexpanded(call, back, call.shape, sides[1])
        return
    yield left, _left_adjoint(call, adjoint, values, sides)
    yield right, _right_adjoint(call, adjoint, values, sides)


def _swapped(call: Call, value: Value, own: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    order = [*range(len(own) - 2), len(own) - 1, len(own) - 2]
    return call.ops.permuted(value, own, order), (*own[:-2], own[-1], own[-2])


def _left_adjoint(call: Call, adjoint: Value, values: Any, sides: Any) -> Value:
    """Δ Rᵀ: its rows lie where the columns of R do."""
    turned, own = _swapped(call, values[1], sides[1])
    turned = batch_axes(call, turned, own, call.shape)
    own = (*call.shape[:-2], *own[-2:])
    rows = rows_of(call, values[0], sides[0], -2)
    keys = {axis.key for axis in rows_of(call, adjoint, call.shape, -1)}
    found = mixed(call, turned, own, rows, "left")
    if adjoint.balanced and adjoint.balanced <= keys:
        # Each row of Δ sums to zero, so what is constant over the rows of Rᵀ vanishes.
        columns, groups = call.ops.grouped(call.ops.features(turned, own, -1), own, -1)
        found = mixed(call, less_constants(columns, {axis.key for axis in groups[-2]}), own, rows, "left")
        if own[-2] == 1:
            return call.ops.blank(sides[0], Kind.ZERO, call.label())
    return unexpanded(call, found, (*call.shape[:-1], sides[0][-1]), sides[0])


def _right_adjoint(call: Call, adjoint: Value, values: Any, sides: Any) -> Value:
    """Lᵀ Δ: its rows lie where those of Δ do, its columns where the rows of L do."""
    to = (*call.shape[:-2], *sides[1][-2:])
    known = adjoint.kind is Kind.KNOWN and any(
        axis.role is Role.FEATURE for axis in rows_of(call, adjoint, call.shape, -1)
    )
    left = batch_axes(call, values[0], sides[0], call.shape)
    if known:
        rows = rows_of(call, values[0], sides[0], -1)
        found = mixed(call, adjoint, call.shape, rows, "right")
        return unexpanded(call, found, to, sides[1])
    keys = rows_of(call, adjoint, call.shape, -1)
    own = (*call.shape[:-2], *sides[0][-2:])
    turned = mixed(call, left, own, keys, "right")
    if adjoint.balanced and adjoint.balanced <= {axis.key for axis in keys}:
        if sum(axis.size > 1 for axis in keys) == 0:
            return call.ops.blank(sides[1], Kind.ZERO, call.label())
        made = {axis.key for axis in rows_of(call, turned, (*own[:-2], call.shape[-1], own[-1]), -2)}
        height = turned.rows // turned.parts.size
        height -= height // call.shape[-1]
        turned = replace(turned, balanced=frozenset(made), height=min(turned.height, height))
    found, _ = _swapped(call, turned, (*own[:-2], call.shape[-1], own[-1]))
    return unexpanded(call, found, to, sides[1])


define(
    [aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default],
    _linear,
    _linear_back,
    "weights: image under W, and one constant term for a bias; back: image under Wᵀ. Data times data: rows of "
    "the right "
    "factor, mixed (what is constant stays where the left factor's rows sum to one); back: to the left the "
    "columns of the "
    "right factor (less what is constant, where Δ sums to zero along them), to the right the rows of Δ or the "
    "columns of "
    "the left factor",
    "every row is mapped by one matrix; L R has rows that combine those of R, and (Δ Rᵀ, Lᵀ Δ) likewise",
)

"""Entry by entry: sums, products, nonlinearities."""

import math
from dataclasses import replace
from typing import Any

from torch import fx

from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, nothing, shape
from compress.bounds.rules.shape import unexpanded
from compress.bounds.values import ONE, Kind, Value, factored, times, varies

# --- sums ----------------------------------------------------------------------------------------------------


def _operands(call: Call) -> list[tuple[Any, float]]:
    other = -1.0 if call.node.target is aten.sub.Tensor else 1.0
    return [(call["self"], 1.0), (call["other"], other * float(call["alpha"]))]


def _operand(call: Call, node: Any) -> tuple[Value, tuple[int, ...]] | None:
    if isinstance(node, fx.Node):
        return (call.tracer.value(node), shape(node)) if is_float(node) else None
    if node == 0:
        return call.ops.blank((), Kind.ZERO, "0"), ()
    return call.ops.blank((), Kind.UNIFORM, "a number", times(ONE, float(node))), ()


def _sum(call: Call) -> Value | None:
    found = [(_operand(call, node), factor) for node, factor in _operands(call)]
    if any(pair is None for pair, _ in found):
        return None
    values = [call.ops.scaled(pair[0], factor) for pair, factor in found if pair is not None]
    return call.ops.add(values, [pair[1] for pair, _ in found if pair is not None], call.shape, call.label())


def _sum_back(call: Call, adjoint: Value) -> Gradients:
    for node, factor in _operands(call):
        if is_float(node):
            yield node, call.ops.scaled(unexpanded(call, adjoint, call.shape, shape(node)), factor)


define(
    [aten.add.Tensor, aten.sub.Tensor],
    _sum,
    _sum_back,
    "both spaces; terms with the same coefficients merge, so `x + x W` is an image of x; a bias is one constant term; "
    "back: the same adjoint to both",
    "equal rows meet",
)


def _negated(call: Call) -> Value | None:
    return call.ops.scaled(call.value("self"), -1.0)


def _negated_back(call: Call, adjoint: Value) -> Gradients:
    yield call["self"], call.ops.scaled(adjoint, -1.0)


define([aten.neg.default], _negated, _negated_back, "same space", "rows change their sign")


# --- products ------------------------------------------------------------------------------------------------

_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)


def _product(call: Call) -> Value | None:
    left, right = call["self"], call["other"]
    if not is_float(left):
        return None
    if not isinstance(right, fx.Node):
        factor = float(right)
        if call.node.target in _DIVISIONS:
            factor = 1 / factor if factor else math.nan
        return call.ops.scaled(call.tracer.value(left), factor) if math.isfinite(factor) else None
    if not is_float(right):
        return call.full(left) if shape(left) == call.shape else None
    values = call.tracer.value(left), call.tracer.value(right)
    if call.node.target in _DIVISIONS:
        return _quotient(call, left, right)
    return call.ops.product(*values, (shape(left), shape(right)), call.shape, (left.name, right.name), call.label())


def _quotient(call: Call, left: fx.Node, right: fx.Node) -> Value:
    # One over the divisor: alike along the same axes as the divisor itself, but another vector.
    divisor = call.tracer.value(right)
    if divisor.kind is Kind.ZERO:
        return call.full(left)
    value = call.tracer.value(left)
    if (value.width > 1 and divisor.width == 1) or len(shape(right)) < 2 or divisor.kind is not Kind.KNOWN:
        shapes = (shape(left), shape(right))
        return call.ops.product(
            value,
            _reciprocal(call, divisor, shape(right)),
            shapes,
            call.shape,
            (left.name, ("one over", right.name)),
            call.label(),
        )
    return call.full(left) if shape(left) == call.shape else call.ops.anything(call.shape, call.name, call.label())


def _reciprocal(call: Call, divisor: Value, of: tuple[int, ...]) -> Value:
    if divisor.kind is Kind.UNIFORM:
        factor, bare = factored(divisor.name)
        inverse = ONE if bare == ONE else ("one over", bare)
        name = times(("local", inverse) if varies(divisor) else inverse, 1 / factor)
        return replace(divisor, name=name)
    if divisor.kind is Kind.KNOWN and math.prod(of) == 1:
        return divisor
    name = ("one over", divisor.name, call.name if divisor.kind is Kind.KNOWN else None)
    return call.ops.anything(of, name, divisor.label, divisor.axes)


def _product_back(call: Call, adjoint: Value) -> Gradients:
    left, right = call["self"], call["other"]
    if not isinstance(right, fx.Node):
        factor = float(right)
        yield left, call.ops.scaled(adjoint, 1 / factor if call.node.target in _DIVISIONS else factor)
        return
    if not is_float(right):
        yield left, call.full(left)
        return
    divides = call.node.target in _DIVISIONS
    other = call.tracer.value(right)
    if divides:
        other = _reciprocal(call, other, shape(right))
    key = ("one over", right.name) if divides else right.name
    arriving = ("adjoint of", call.name)
    shapes = call.shape, shape(right)
    to_left = call.ops.product(adjoint, other, shapes, call.shape, (arriving, key), call.label())
    yield left, unexpanded(call, to_left, call.shape, shape(left))
    if divides:
        yield right, call.full(right)
        return
    value = call.tracer.value(left)
    shapes = call.shape, shape(left)
    to_right = call.ops.product(adjoint, value, shapes, call.shape, (arriving, left.name), call.label())
    yield right, unexpanded(call, to_right, call.shape, shape(right))


define(
    [aten.mul.Tensor, aten.mul.Scalar, *_DIVISIONS],
    _product,
    _product_back,
    "by a number: same space; by one vector for all rows: image under its diagonal; by a number for each row: same "
    "space, other coefficients (a constant starts to vary); else full",
    "row and feature factors commute with the maps around them; gates do not",
)


# --- squares, under a mean or a sum ----------------------------------------------------------------------------


def _square(call: Call) -> Value | None:
    if call.node.target is aten.pow.Tensor_Scalar and call["exponent"] == 1:
        return call.value("self")
    return call.full(call["self"])


def _square_back(call: Call, adjoint: Value) -> Gradients:
    source = call["self"]
    power = call.get("exponent", 2)
    if power == 1:
        yield source, adjoint
    elif power == 2:
        value = call.tracer.value(source)
        names = ("adjoint of", call.name), source.name
        half = call.ops.product(adjoint, value, (call.shape, shape(source)), call.shape, names, call.title)
        yield source, call.ops.scaled(half, 2.0)
    else:
        yield source, call.full(source)


define(
    [aten.pow.Tensor_Scalar, aten.square.default],
    _square,
    _square_back,
    "full; back: for a square under a sum or a mean the space of the input itself",
    "d(z²) = 2 z",
)


# --- made of nothing ---------------------------------------------------------------------------------------------


def _zeros(call: Call) -> Value:
    return call.ops.blank(call.shape, Kind.ZERO, "zeros")


def _ones(call: Call) -> Value:
    return call.ops.blank(call.shape, Kind.UNIFORM, "ones", ONE)


def _filled(call: Call) -> Value:
    fill = call["fill_value"]
    if isinstance(fill, fx.Node):
        return call.ops.anything(call.shape, call.name, call.title)
    if fill == 0:
        return call.ops.blank(call.shape, Kind.ZERO, "zeros")
    return call.ops.blank(call.shape, Kind.UNIFORM, "a number", times(ONE, float(fill)))


define(
    [aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default],
    _zeros,
    nothing,
    "zero",
    "no row has an entry",
)
define(
    [aten.ones.default, aten.ones_like.default, aten.new_ones.default],
    _ones,
    nothing,
    "one constant in every entry",
    "alike on all workers",
)
define(
    [aten.full.default, aten.full_like.default, aten.new_full.default],
    _filled,
    nothing,
    "one constant in every entry",
    "alike on all workers",
)

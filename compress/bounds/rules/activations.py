"""Nonlinearities, and whatever else changes entries one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from compress.bounds.leaky import calibrated_tail, carried_tail, leaky_carried_tail
from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape, slopes
from compress.bounds.values import Kind, Value

_ACTIVATIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.gelu.default: torch.nn.functional.gelu,
    aten.silu.default: torch.nn.functional.silu,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.elu.default: torch.nn.functional.elu,
    aten.softplus.default: torch.nn.functional.softplus,
    aten.hardtanh.default: torch.nn.functional.hardtanh,
    aten.relu6.default: torch.nn.functional.relu6,
    aten.mish.default: torch.nn.functional.mish,
    aten.hardswish.default: torch.nn.functional.hardswish,
}


def _as_multiple(value: Value, slope: float | None, tail: float = 0.0) -> Value:
    """The value itself, as the nearest multiple of what comes out, and how far that may be."""
    if slope is not None:
        return replace(value, slack=leaky_carried_tail([slope], error=min(1.0, value.slack)))
    return replace(value, slack=carried_tail([tail], error=value.slack), proven=False)


def _leaky_slope(call: Call) -> float | None:
    slope = float(call["negative_slope"]) if call.node.target is aten.leaky_relu.default else 0.0
    return slope if 0 <= slope <= 1 else None


def _activation(call: Call) -> Value | None:
    source = call["self"]
    if call.tracer.linear:
        return _as_multiple(call.value("self"), None, _calibrated(call.node.target, False))
    return call.full(source)


def _activation_back(call: Call, adjoint: Value) -> Gradients:
    source = call["self"]
    if call.tracer.linear:
        yield source, _as_multiple(adjoint, None, _calibrated(call.node.target, True))
    else:
        yield source, call.full(source, f"the slopes of {call.label()}")


_TAILS: dict[tuple[Any, bool], float] = {}


def _calibrated(op: Any, derivative: bool) -> float:
    if (op, derivative) not in _TAILS:
        _TAILS[op, derivative] = calibrated_tail(_ACTIVATIONS[op], derivative=derivative)
    return _TAILS[op, derivative]


define(
    list(_ACTIVATIONS),
    _activation,
    _activation_back,
    "full",
    "another slope for every entry (`linear_rank` takes the nearest multiple instead)",
)


def _leaky(call: Call) -> Value | None:
    slope = _leaky_slope(call)
    if slope == 1:
        return call.value("self")
    if call.tracer.linear and slope is not None:
        return _as_multiple(call.value("self"), slope)
    return call.full(call["self"])


def _leaky_back(call: Call, adjoint: Value) -> Gradients:
    slope = _leaky_slope(call)
    if slope == 1:
        yield call["self"], adjoint
    elif call.tracer.linear and slope is not None:
        yield call["self"], _as_multiple(adjoint, slope)
    else:
        yield call["self"], call.full(call["self"], f"the slopes of {call.label()}")


define(
    [aten.leaky_relu.default, aten.relu.default],
    _leaky,
    _leaky_back,
    "α = 1: same space; else full",
    "another slope for every entry, unless all are 1",
)


def _dropout_off(call: Call) -> bool:
    return not call["train"] or call["p"] == 0


def _dropout(call: Call) -> Any:
    source = call["input"]
    value = call.value("input") if _dropout_off(call) else call.full(source)
    return [value, None] if call.node.target is aten.native_dropout.default else value


def _dropout_back(call: Call, adjoint: Any) -> Gradients:
    arrived = adjoint[0] if call.node.target is aten.native_dropout.default else adjoint
    if arrived is not None:
        yield call["input"], arrived if _dropout_off(call) else call.full(call["input"], f"the mask of {call.title}")


define(
    [aten.native_dropout.default, aten.dropout.default],
    _dropout,
    _dropout_back,
    "off: same space; on: full",
    "another mask for every entry",
)


# --- whatever else changes entries one by one --------------------------------------------------------------------


def _any(call: Call) -> Value | None:
    for node in call.node.all_input_nodes:
        if is_float(node) and shape(node) == call.shape:
            return call.full(node)
    return call.ops.anything(call.shape, call.name, call.title)


define(
    [aten.exp.default, aten.log.default, aten.sin.default, aten.cos.default, aten.abs.default, aten.sqrt.default]
    + [aten.rsqrt.default, aten.reciprocal.default, aten.erf.default, aten.log1p.default, aten.expm1.default]
    + [aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.maximum.default, aten.minimum.default]
    + [aten.hardsigmoid.default, aten.log_sigmoid.default, aten.selu.default, aten.celu.default, aten.prelu.default]
    + [aten.threshold.default, aten.pow.Tensor_Tensor, aten.addcmul.default, aten.glu.default]
    + [
        aten.where.self,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.sign.default,
        aten.round.default,
        aten.floor.default,
        aten.atan2.default,
    ]
    + [aten.var.dim, aten.var.correction, aten.std.correction, aten.std.dim, aten.linalg_vector_norm.default]
    + [aten.hardshrink.default, aten.softshrink.default, aten.logit.default, aten.rsub.Scalar, aten.special_erf.default]
    + [aten.cumsum.default, aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.tan.default]
    + [aten.atan.default, aten.sinh.default, aten.cosh.default, aten.index.Tensor, aten.gather.default]
    + [aten.pixel_shuffle.default, aten.im2col.default, aten.col2im.default, aten.index_select.default]
    + [aten._weight_norm.default, aten.instance_norm.default, aten.polar.default],
    _any,
    slopes,
    "full",
    "nothing linear is left, or nobody follows it",
)


def _masked(call: Call) -> Value | None:
    value = call.value("self")
    return call.full(call["self"]) if shape(call["self"]) == call.shape and value else None


def _masked_back(call: Call, adjoint: Value) -> Gradients:
    source = call["self"]
    fill = call["value"]
    found = call.full(source)
    # Where a score is masked by (nearly) minus infinity, softmax gives zero and the adjoint is zero already.
    softmax = all(user.target is aten.softmax.int for user in call.node.users)
    if not isinstance(fill, fx.Node) and fill <= -1e30 and adjoint.kind is Kind.ANY and softmax:
        found = replace(adjoint, name=("masked", call.name, adjoint.name))
    yield source, found


define(
    [aten.masked_fill.Scalar],
    _masked,
    _masked_back,
    "full; back: an adjoint that sums to zero still does where the fill is below −1e30",
    "softmax gives such entries weight zero",
)

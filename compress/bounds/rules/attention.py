"""Attention and softmax."""

import math
from dataclasses import replace
from typing import Any

from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape
from compress.bounds.rules.linear import batch_axes, mixed, rows_of
from compress.bounds.rules.shape import unexpanded
from compress.bounds.values import ONE, Axis, Kind, Role, Value, less_constants


def _keys(call: Call, value: Value, own: tuple[int, ...], position: int) -> frozenset[Any]:
    return frozenset(axis.key for axis in rows_of(call, value, own, position))


def _softmax(call: Call) -> Value | None:
    source = call["self"]
    if not is_float(source):
        return None
    if call.node.target is aten.softmax.int and call.shape and call.shape[call["dim"]] == 1:
        return call.ops.blank(call.shape, Kind.UNIFORM, call.label(), ONE)
    found = call.full(source, call.label())
    if call.node.target is aten.softmax.int:
        return replace(found, stochastic=_keys(call, found, call.shape, call["dim"]))
    return found


def _softmax_back(call: Call, adjoint: Value) -> Gradients:
    source = call["self"]
    found = call.full(source, f"the adjoint of {call.title}")
    size = call.shape[call["dim"]] if call.shape else 1
    if size == 1:
        yield source, call.ops.blank(shape(source), Kind.ZERO, found.label)
        return
    found, groups = call.ops.grouped(found, call.shape)
    keys = frozenset(axis.key for axis in groups[call["dim"] % len(call.shape)])
    yield source, replace(found, balanced=keys)


define(
    [aten.softmax.int, aten.log_softmax.int],
    _softmax,
    _softmax_back,
    "full (a softmax's rows sum to one); back: full, summing to zero along the axis",
    "ds = p∘(dp − Σ p∘dp), and for the logarithm dy − p·Σ dy: both sum to zero",
)


# --- one op for all of attention -------------------------------------------------------------------------------


def _repeated(call: Call, value: Value, own: tuple[int, ...]) -> tuple[Value, tuple[int, ...]]:
    """Keys or values with each head as often as query heads share it."""
    heads = call.shape[-3] if len(call.shape) > 2 else 1
    if not call.get("enable_gqa") or own[-3] == heads:
        return value, own
    times = heads // own[-3]
    apart = (*own[:-2], 1, *own[-2:])
    spread = (*own[:-2], times, *own[-2:])
    return call.ops.expanded(value, apart, spread), (*own[:-3], heads, *own[-2:])


def _unrepeated(call: Call, adjoint: Value, own: tuple[int, ...], to: tuple[int, ...]) -> Value:
    if call.get("enable_gqa") and own[-3] != to[-3]:
        apart = (*to[:-2], own[-3] // to[-3], *own[-2:])
        adjoint = call.ops.reduced(adjoint, apart, [len(apart) - 3], call.name, mean=False)
        return unexpanded(call, adjoint, (*own[:-3], to[-3], *own[-2:]), to)
    return unexpanded(call, adjoint, own, to)


def _is_stochastic(call: Call) -> bool:
    """Whether weights sum to one: a mask may leave a row nothing to attend to, and dropout rescales."""
    return call["attn_mask"] is None and call["dropout_p"] == 0


def _attention(call: Call) -> Value:
    query, value = call["query"], call["value"]
    values, own = _repeated(call, call.value("value"), shape(value))
    values = batch_axes(call, values, own, call.shape)
    own = (*call.shape[:-2], *own[-2:])
    rows = rows_of(call, call.tracer.value(query), shape(query), -2)
    stochastic = _is_stochastic(call)
    if own[-2] == 1 and stochastic:  # all rows are copies of the only one
        return replace(call.ops.expanded(values, own, (*call.shape[:-1], own[-1])), label=call.label())
    return replace(mixed(call, values, own, rows, constant_stays=stochastic), label=call.label())


def _attention_back(call: Call, adjoint: Value) -> Gradients:
    query, key, value = (call[name] for name in ("query", "key", "value"))
    batch, sides = call.shape[:-2], {name: shape(call[name]) for name in ("query", "key", "value")}
    times = sides["query"][-2], sides["key"][-2]

    def rows(name: str) -> list[Axis]:
        return rows_of(call, call.value(name), sides[name], -2)

    if times[1] == 1 and _is_stochastic(call):
        to_values = call.ops.reduced(adjoint, call.shape, [len(call.shape) - 2], call.name, mean=False)
    else:
        to_values = mixed(call, adjoint, call.shape, rows("value"), "value")
    yield value, _unrepeated(call, to_values, (*batch, times[1], sides["value"][-1]), sides["value"])
    if is_float(call["attn_mask"]):
        yield call["attn_mask"], call.full(call["attn_mask"])
    if times[1] == 1:
        # The softmax of one score is one, whatever the score.
        yield query, call.ops.blank(sides["query"], Kind.ZERO, call.title)
        yield key, call.ops.blank(sides["key"], Kind.ZERO, call.title)
        return

    keys, own = _repeated(call, call.value("key"), sides["key"])
    keys = call.ops.features(batch_axes(call, keys, own, call.shape), (*batch, *own[-2:]), -1)
    varying = less_constants(keys, {axis.key for axis in rows_of(call, keys, (*batch, *own[-2:]), -2)})
    to_queries = mixed(call, varying, (*batch, *own[-2:]), rows("query"), "query")
    heads = to_queries.parts.size  # of which features are side by side
    samples = math.prod(batch) // heads
    alive = times[0] - 1 if call["is_causal"] and times[0] == times[1] else times[0]
    # A row of scores sums to zero, so a head's scores have rank T_k − 1; the first causal query has but one score.
    height = samples * min(alive, heads * min(alive, times[1] - 1))
    to_queries = replace(to_queries, height=min(to_queries.height, height))
    yield query, unexpanded(call, to_queries, (*batch, times[0], sides["query"][-1]), sides["query"])

    queries = batch_axes(call, call.value("query"), sides["query"], call.shape)
    own = (*batch, *sides["query"][-2:])
    to_keys = mixed(call, queries, own, rows("key"), "key")
    made = frozenset(
        axis.key for axis in rows_of(call, to_keys, (*batch, times[1], sides["query"][-1]), -2) if axis.role is Role.ROW
    )
    height = math.prod(batch) // to_keys.parts.size * (times[1] - 1)
    to_keys = replace(to_keys, balanced=made, height=min(to_keys.height, height))
    yield key, _unrepeated(call, to_keys, (*batch, times[1], sides["key"][-1]), sides["key"])


define(
    [aten.scaled_dot_product_attention.default],
    _attention,
    _attention_back,
    "rows of V, mixed, for each head (a constant stays without mask and dropout); back: to V rows of Δ, to Q "
    "rows of K less "
    "what is constant, to K rows of Q, summing to zero over the keys; one key: zero",
    "out = P V with rows of P that sum to one; dS sums to zero over the keys, so dQ = dS K and dK = dSᵀ Q",
)

"""Losses, and the table of tokens that a network starts from."""

import math
from dataclasses import replace

from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape, slopes
from compress.bounds.values import Axis, Kind, Role, Value


def _loss(call: Call) -> Value:
    return call.ops.anything(call.shape, call.name, call.title)


def _cross_entropy_back(call: Call, adjoint: Value) -> Gradients:
    logits = call["self"]
    own = shape(logits)
    position = 0 if len(own) == 1 else 1
    found = call.full(logits, f"cross-entropy over {own[position]} classes, whose rows sum to zero")
    found, groups = call.ops.grouped(found, own)
    keys = frozenset(axis.key for axis in groups[position])
    if own[position] == 1:
        yield logits, call.ops.blank(own, Kind.ZERO, found.label)
    else:
        yield logits, replace(found, balanced=keys)
    for name in ("target", "weight"):  # soft targets and class weights may depend on weights too
        if is_float(call[name]):
            yield call[name], call.full(call[name])


define(
    [aten.cross_entropy_loss.default],
    _loss,
    _cross_entropy_back,
    "back: full, each row summing to zero: C − 1",
    "softmax·Σt − t sums to zero: with label smoothing, class weights, ignored rows and soft targets too",
)


def _squared_back(call: Call, adjoint: Value) -> Gradients:
    output, target = call["self"], call["target"]
    own = shape(output), shape(target)
    if own[0] != own[1] or not (adjoint.kind is Kind.UNIFORM or call["reduction"] != 0):
        for node in (output, target):
            yield node, call.full(node)
        return
    values = [call.tracer.value(output), call.ops.scaled(call.tracer.value(target), -1.0)]
    difference = call.ops.add(values, own, own[0], "output − target")
    entries = math.prod(own[0]) if call["reduction"] == 1 else 1
    difference = call.ops.scaled(difference, 2 / max(1, entries))
    # A factor that differs between workers and passes makes other coefficients, none of them constant.
    names = (call.name, ("adjoint of", call.name))
    difference = call.ops.product(difference, adjoint, (own[0], call.shape), own[0], names, call.title)
    yield output, difference
    yield target, call.ops.scaled(difference, -1.0)


define(
    [aten.mse_loss.default],
    _loss,
    _squared_back,
    "back: output − target",
    "d(z²) = 2 z, times one number",
)


define(
    [aten.l1_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.kl_div.default]
    + [aten.binary_cross_entropy_with_logits.default, aten.binary_cross_entropy.default, aten.nll_loss_nd.default]
    + [aten.soft_margin_loss.default, aten.poisson_nll_loss.default, aten.cosine_embedding_loss.default],
    _loss,
    slopes,
    "back: full",
    "another slope for every entry",
)


# --- embedding ---------------------------------------------------------------------------------------------------


def _embedding(call: Call) -> Value | None:
    weight, indices = call["weight"], call["indices"]
    tokens, width = shape(weight)
    name = call.tracer.parameter(weight)
    axes = [Axis(position, size) for position, size in enumerate(shape(indices)) if size > 1]
    axes.append(Axis(("out", call.name), width, Role.FEATURE))
    if name is None:
        return call.ops.anything(call.shape, call.name, call.label(), axes)
    space = call.algebra.source(
        ("parameter", name), min(tokens, width), width, f"{call.title} ({tokens} rows)", known=True
    )
    terms = {call.algebra.root("embedding", call.name, label=call.label()): space}
    rows = 1
    for size in shape(indices):
        rows *= size
    return call.ops.single(axes, terms, rows, call.label())


def _embedding_back(call: Call, adjoint: Value) -> Gradients:
    weight = call["weight"]
    delta = call.ops.features(adjoint, call.shape, -1)
    found = call.tracer.weight(weight)
    if found is None:
        yield weight, call.full(weight)
        return
    tokens = shape(weight)[0]
    picked = call.ops.any_rows(tokens, "the tokens")
    call.tracer.use_tokens(found[0], delta, picked, delta.rows)


define(
    [aten.embedding.default],
    _embedding,
    _embedding_back,
    "full (or as many dimensions as there are tokens); its gradient has a row for each distinct token",
    "out = onehot W, so G = onehotᵀ Δ",
)

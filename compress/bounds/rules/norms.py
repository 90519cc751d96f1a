"""Normalisation: each divides by statistics of the data, so rows keep their space but not their coefficients."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from compress.bounds.maps import Centre, Diagonal, Embed, Select, Tile, Unknown
from compress.bounds.rules.base import Call, Gradients, aten, define, shape
from compress.bounds.rules.linear import constant_added
from compress.bounds.spaces import Terms
from compress.bounds.values import Role, Value


def _flat(call: Call) -> tuple[int, ...]:
    """The input's shape, with all normalised axes as one."""
    own, normalized = shape(call["input"]), call["normalized_shape"]
    entries = 1
    for size in normalized:
        entries *= size
    return (*own[: len(own) - len(normalized)], entries)


def _gained(call: Call, value: Value, weight: Any) -> Value:
    """Features times a learned vector."""
    if weight is None:
        return value
    name, width = call.tracer.parameter(weight), value.width
    local = not call.tracer.shared(weight)
    gain = Unknown(width, width, ("gain", call.name), diagonal=True, local=local)
    map = Diagonal(width, width, name) if name else gain
    return value.mapped(lambda terms, index: call.ops.through(terms, map))


def _shifted(call: Call, value: Value, bias: Any, of: tuple[int, ...]) -> Value:
    if bias is None:
        return value
    name = call.tracer.parameter(bias)
    if name is not None:
        return constant_added(call, value, name)
    return call.ops.add([value, call.tracer.value(bias)], [of, shape(bias)], of, call.label())


# --- over the features of each row -----------------------------------------------------------------------------


def _normalised(call: Call, value: Value, of: tuple[int, ...], *tag: Any) -> Value:
    """Each row centred (LayerNorm), and times a number of its own."""
    value = call.ops.features(value, of, -1)
    width = value.width

    def change(terms: Terms, index: Any) -> Terms:
        if call.node.target is aten.layer_norm.default:
            terms = call.ops.through(terms, Centre(width, width), f"{call.title}, which centres rows")
        return call.ops.tagged(terms, "norm", call.name, *tag, index)

    # Pieces of one row are each times another number.
    height = min(value.rows // max(1, value.parts.size), value.stacked)
    return value.mapped(change, balanced=frozenset(), height=height, proven=False)


def _layer_norm(call: Call) -> Value:
    value = _normalised(call, call.value("input"), _flat(call))
    return replace(
        _shifted(call, _gained(call, value, call["weight"]), call.get("bias"), _flat(call)), label=call.label()
    )


def _layer_norm_back(call: Call, adjoint: Value) -> Gradients:
    flat = _flat(call)
    own = call.ops.features(adjoint, flat, -1)
    yield from _gain_adjoints(call, adjoint)
    through = _normalised(call, _gained(call, own, call["weight"]), flat, "back")
    itself = _normalised(call, call.value("input"), flat, "itself")
    yield call["input"], call.ops.add([through, itself], [flat, flat], flat, f"the adjoint of {call.title}")


def _gain_adjoints(call: Call, adjoint: Value) -> Gradients:
    for name in ("weight", "bias"):
        node = call.get(name)
        if isinstance(node, fx.Node):
            yield node, call.full(node)


define(
    [aten.layer_norm.default, aten.rms_norm.default],
    _layer_norm,
    _layer_norm_back,
    "image under centring (LayerNorm) and γ, with coefficients of its own, ⊕ β; back: image under γ and centring "
    "⊕ space "
    "of the normalised input",
    "dx = (γ∘dy − mean − x̂·mean(x̂∘γ∘dy)) / σ, σ a number for each row",
)


# --- over the rows of a batch ----------------------------------------------------------------------------------


def _is_training(call: Call) -> bool:
    return call.node.target is aten._native_batch_norm_legit_functional.default and call["training"]


def _row_keys(value: Value) -> frozenset[Any]:
    return frozenset(axis.key for axis in value.axes if axis.role is not Role.FEATURE)


def _centred(call: Call, value: Value, *tag: Any) -> Value:
    """Rows less their mean over the batch, each feature times a number of this worker and pass."""
    value = call.ops.features(value, shape(call["input"]), 1)
    width, keys = value.width, _row_keys(value)
    if any(axis.role is Role.PIECE for axis in value.axes):
        value = call.ops.features(call.ops.unknown(value), shape(call["input"]), 1)
    together = call.tracer.synchronised(call.node)
    # Workers that share statistics still have others in each backward pass.
    alike = together and call.tracer.accumulation_steps == 1
    local = Unknown(width, width, ("statistics", call.name, *tag), diagonal=True, local=not alike)

    def change(terms: Terms, index: Any) -> Terms:
        varying = call.ops.tagged(call.algebra.zero_less(terms), "centred", tuple(sorted(map(str, keys))))
        return call.ops.through(varying, local)

    if together:  # the rows of all workers sum to zero, those of one do not
        return value.mapped(change, balanced=frozenset(), proven=False)
    height = min(value.height, max(0, value.rows - 1))
    return value.mapped(change, balanced=keys, height=height, proven=False)


def _running(call: Call, width: int) -> Unknown:
    """Statistics of the buffers are alike on all workers; any others are not."""
    stored = all(call[name].op == "placeholder" for name in ("running_mean", "running_var"))
    return Unknown(width, width, ("running", call.name), diagonal=True, local=not stored)


def _batch_norm(call: Call) -> Any:
    of = shape(call["input"])
    if _is_training(call):
        value = _centred(call, call.value("input"))
    else:
        value = call.ops.features(call.value("input"), of, 1)
        width = value.width
        fixed = _running(call, width)
        value = value.mapped(lambda terms, index: call.ops.through(terms, fixed), proven=False)
        shift = Unknown(1, width, ("mean", call.name), local=fixed.local)
        mean = {call.algebra.constant: call.algebra.image(call.algebra.one, shift)}
        value = value.mapped(
            lambda terms, index: call.algebra.add(terms, mean), height=value.height + 1, balanced=frozenset()
        )
    value = _gained(call, value, call["weight"])
    bias = call["bias"]
    if bias is not None:
        name = call.tracer.parameter(bias)
        if name is None:
            return None
        value = constant_added(call, value, name)
    outputs = len(call.node.meta["val"])
    return [replace(value, label=call.label(value.width)), *[None] * (outputs - 1)]


def _batch_norm_back(call: Call, adjoints: list[Value | None]) -> Gradients:
    adjoint, of = adjoints[0], shape(call["input"])
    if adjoint is None:
        return
    yield from _gain_adjoints(call, adjoint)
    own = _gained(call, call.ops.features(adjoint, of, 1), call["weight"])
    if not _is_training(call):
        fixed = _running(call, own.width)
        yield call["input"], own.mapped(lambda terms, index: call.ops.through(terms, fixed))
        return
    through, itself = _centred(call, own), _centred(call, call.value("input"), "itself")
    yield call["input"], call.ops.add([through, itself], [of, of], of, f"the adjoint of {call.title}")


define(
    [aten._native_batch_norm_legit_functional.default, aten._native_batch_norm_legit_no_training.default],
    _batch_norm,
    _batch_norm_back,
    "training: what is constant vanishes; image under 1/σ of this worker and pass, and γ, ⊕ β; back: image ⊕ "
    "space of the "
    "centred input, summing to zero over the rows. Evaluation: image under a fixed diagonal ⊕ a constant",
    "dx = γ/σ∘(dy − mean − x̂∘mean(x̂∘dy)), statistics of each worker and pass; in evaluation those of the "
    "buffers, which "
    "DDP keeps alike on all workers",
)


# --- over groups of features of each sample ----------------------------------------------------------------------


def _grouped(call: Call, value: Value, *tag: Any) -> Value:
    """Each group of channels on its own: less a mean, times a number of its sample."""
    of, groups = shape(call["input"]), call["num_groups"]
    value = call.ops.features(value, of, 1)
    width, each = value.width, value.width // groups
    alone = int(np.prod(of[2:])) == 1
    algebra = call.algebra

    def change(terms: Terms, index: Any) -> Terms:
        found: dict[Any, Any] = {}
        for group in range(groups):
            part = call.ops.through(terms, Select(width, each, group * each))
            if alone:
                part = call.ops.through(part, Centre(each, each), f"{call.title}, which centres groups")
            part = dict(call.ops.tagged(part, "group", call.name, *tag, group, index))
            if not alone and part:
                mean = algebra.image(algebra.one, Tile(1, each), f"the means of {call.title}")
                part[algebra.root("mean", call.name, *tag, group, index, label=call.title)] = mean
            found.update(call.ops.through(part, Embed(each, width, group * each)))
        return found

    return value.mapped(change, balanced=frozenset(), height=value.rows, proven=False)


def _group_norm(call: Call) -> Value:
    value = _gained(call, _grouped(call, call.value("input")), call["weight"])
    bias = call["bias"]
    if bias is not None:
        name = call.tracer.parameter(bias)
        value = constant_added(call, value, name) if name else call.ops.unknown(value)
    return replace(value, label=call.label(value.width))


def _group_norm_back(call: Call, adjoint: Value) -> Gradients:
    of = shape(call["input"])
    yield from _gain_adjoints(call, adjoint)
    own = _gained(call, call.ops.features(adjoint, of, 1), call["weight"])
    through, itself = _grouped(call, own, "back"), _grouped(call, call.value("input"), "itself")
    yield call["input"], call.ops.add([through, itself], [of, of], of, f"the adjoint of {call.title}")


define(
    [aten.group_norm.default],
    _group_norm,
    _group_norm_back,
    "each group of channels apart, with coefficients of its own, ⊕ its mean's direction ⊕ β; back likewise ⊕ "
    "space of the "
    "normalised input",
    "mean and σ are numbers for each sample and group, so the space splits by group",
)

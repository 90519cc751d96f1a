"""PyTorch's own recurrent ops: RNN, GRU and LSTM over whole sequences."""

from typing import Any

from torch import fx

from compress.bounds.maps import Linear
from compress.bounds.rules.base import Call, Gradients, aten, define, is_float, shape
from compress.bounds.values import Axis, Kind, Role, Value


def _states(call: Call) -> list[fx.Node]:
    found = call["hx"]
    return list(found) if isinstance(found, list | tuple) else [found]


def _weights(call: Call) -> list[list[list[fx.Node]]]:
    """Weights (not biases) of each layer and direction: input, recurrent, and the projection if there is one."""
    flat, biases = list(call["params"]), call["has_biases"]
    directions = 2 if call["bidirectional"] else 1
    each = len(flat) // (call["num_layers"] * directions)
    kept = [0, 1] + ([4 if biases else 2] if each in (3, 5) else [])
    sets = [[flat[start + i] for i in kept] for start in range(0, len(flat), each)]
    return [sets[start : start + directions] for start in range(0, len(sets), directions)]


def _forward(call: Call) -> Any:
    if call.get("input") is None or call.get("batch_first") is None or len(shape(call["input"])) != 3:
        return None  # a packed sequence
    outputs = call.node.meta["val"]
    found: list[Any] = []
    for number, output in enumerate(outputs):
        axes: list[Axis] = []
        if number == 0:
            axes = [
                axis for group in call.ops.grouped(call.value("input"), shape(call["input"]))[1][:2] for axis in group
            ]
            axes = [axis for axis in axes if axis.size > 1]
            axes.append(Axis(("out", call.name), int(output.shape[-1])))
        found.append(call.ops.anything(tuple(output.shape), (call.name, number), call.title, axes))
    return found


def _backward(call: Call, adjoints: list[Value | None]) -> Gradients:
    source = call["input"]
    own = shape(source)
    steps, samples = (own[1], own[0]) if call["batch_first"] else (own[0], own[1])
    states = _states(call)
    # With a zero state the first step adds nothing to the gradient of the recurrent weights.
    fresh = call.tracer.value(states[0]).kind is Kind.ZERO
    value = call.ops.features(call.tracer.value(source), own, 2)
    terms: dict[Any, Any] = {}
    followed = True
    for layer, directions in enumerate(_weights(call)):
        for direction, (inward, recurrent, *projection) in enumerate(directions):
            gates, hidden = shape(inward)[0], shape(recurrent)[1]
            delta = call.ops.any_rows(gates, f"the gates of {call.title}")
            below = value if layer == 0 else call.ops.any_rows(shape(inward)[1], f"the layer below in {call.title}")
            before = call.ops.any_rows(hidden, f"the hidden state of {call.title}")
            _use(call, inward, below, delta, steps * samples)
            _use(call, recurrent, before, delta, (steps - fresh) * samples)
            if projection:
                wide = shape(projection[0])[1]
                _use(call, projection[0], call.ops.any_rows(wide, "the cell"), before, steps * samples)
            if layer == 0:
                everything = call.algebra.source(("all", gates), gates, gates, f"the gates of {call.title}")
                found = call.tracer.weight(inward)
                followed = followed and found is not None and not found[1]
                if found is not None:
                    map = Linear(gates, own[-1], found[0], transposed=True)
                    terms[call.algebra.root("gates", call.name, direction, label=delta.label)] = call.algebra.image(
                        everything, map
                    )
    feature = value.feature
    assert feature is not None
    axes = [axis for axis in value.axes if axis.role is not Role.FEATURE]
    rows = [axis for axis in axes if axis.role is Role.ROW]
    if len(rows) == len(axes) and terms and followed:
        axes = [*axes, Axis(feature.key, own[-1], Role.FEATURE)]
        yield source, call.ops.single(axes, terms, steps * samples, f"the input of {call.title}")
    else:
        yield source, call.full(source)
    for state in states:
        if is_float(state):
            yield state, call.full(state)
    for node in call["params"]:
        if call.tracer.weight(node) is None or len(node.meta["val"].shape) != 2:
            yield node, call.full(node)


def _use(call: Call, weight: fx.Node, inputs: Value, delta: Value, rows: int) -> None:
    found = call.tracer.weight(weight)
    if found is not None:
        call.tracer.use(found[0], inputs, delta, rows)


_OPS = [aten.rnn_tanh.input, aten.rnn_relu.input, aten.gru.input, aten.lstm.input]
define(
    _OPS,
    _forward,
    _backward,
    "full; rows: samples × steps for input weights, samples × (steps − 1) for recurrent ones from a zero state; "
    "back: image "
    "of the gates under the input weights",
    "G = Σ_t Δ_tᵀ h_{t−1}, and h_0 = 0 adds nothing",
)

"""nn.RNN, nn.GRU, nn.LSTM, unrolled: every sample of every step is a row of A."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.capture.function import captured
from compress.capture.kind import Keepers, Kind
from compress.capture.linear import Linear

State = tuple[Tensor, ...]
Map = Callable[[Tensor], Tensor]
Cell = Callable[[Tensor, Tensor, State], State]
"""From what the input and what the last hidden state drive, and the last state (hidden, …), to the next."""


def _weights(module: nn.RNNBase) -> dict[str, str | None]:
    """Input weights bring their biases along.

    Those of recurrent weights get their gradient by themselves: a state of zeros adds rows to Δ and
    nothing to ΔᵀA.
    """
    names = [name for name, parameter in module._parameters.items() if parameter is not None and parameter.dim() == 2]
    inward = {name: name.replace("weight", "bias") for name in names if name.startswith("weight_ih") and module.bias}
    return {name: inward.get(name) for name in names}


def _elman(nonlinearity: Map) -> Cell:
    return lambda driven, carried, state: (nonlinearity(driven + carried),)


def _gru(driven: Tensor, carried: Tensor, state: State) -> State:
    (hidden,) = state
    reset_in, update_in, new_in = driven.chunk(3, dim=-1)
    reset, update, new = carried.chunk(3, dim=-1)
    candidate = torch.tanh(new_in + torch.sigmoid(reset_in + reset) * new)
    return (candidate + torch.sigmoid(update_in + update) * (hidden - candidate),)


def _lstm(driven: Tensor, carried: Tensor, state: State) -> State:
    ingate, forget, cell, out = (driven + carried).chunk(4, dim=-1)
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(ingate) * torch.tanh(cell)
    return torch.sigmoid(out) * torch.tanh(memory), memory


def _cell(module: nn.RNNBase) -> Cell:
    if isinstance(module, nn.RNN):
        return _elman(torch.tanh if module.nonlinearity == "tanh" else torch.relu)
    return _gru if isinstance(module, nn.GRU) else _lstm


def _map(module: nn.RNNBase, keepers: Keepers, weight: str, bias: str | None) -> Map:
    """The product with a weight of the layer, captured where wanted."""
    added = None if bias is None else module.get_parameter(bias)
    if weight in keepers:
        return lambda source: captured(Linear(), source, keepers[weight], added)
    return partial(F.linear, weight=module.get_parameter(weight), bias=added)


def _direction(module: nn.RNNBase, keepers: Keepers, place: str, series: Tensor, state: State) -> tuple[Tensor, State]:
    """One layer in one direction over a series (steps, samples, n)."""
    inward_bias, carried_bias = (f"bias_ih_{place}", f"bias_hh_{place}") if module.bias else (None, None)
    inward = _map(module, keepers, f"weight_ih_{place}", inward_bias)
    carry = _map(module, keepers, f"weight_hh_{place}", carried_bias)
    project = _map(module, keepers, f"weight_hr_{place}", None) if module.proj_size else None
    cell, outputs = _cell(module), []
    # On a GPU a state that is handed over costs a wait here. Were the rows of a zero state kept, they would be
    # sent for nothing.
    fresh = not state[0].requires_grad and not bool(state[0].any())
    for driven in inward(series):
        if fresh:
            bias = None if carried_bias is None else module.get_parameter(carried_bias)
            carried = torch.zeros_like(driven) if bias is None else bias.expand_as(driven)
            fresh = False
        else:
            carried = carry(state[0])
        hidden, *memory = cell(driven, carried, state)
        state = (hidden if project is None else project(hidden), *memory)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _forward(module: nn.RNNBase, keepers: Keepers, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    is_lstm = isinstance(module, nn.LSTM)
    given: Sequence[Tensor] | None = None if hx is None else hx if is_lstm else [hx]
    single = input.dim() == 2
    if single:
        series = input.unsqueeze(1)
        given = None if given is None else [part.unsqueeze(1) for part in given]
    else:
        series = input.transpose(0, 1) if module.batch_first else input
    directions = 2 if module.bidirectional else 1
    if given is None:
        widths = [module.proj_size or module.hidden_size, module.hidden_size][: 1 + is_lstm]
        given = [series.new_zeros(module.num_layers * directions, series.shape[1], width) for width in widths]

    left: list[State] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            state = tuple(part[len(left)] for part in given)
            place = f"l{layer}" + ("_reverse" if direction else "")
            if direction:
                backwards, state = _direction(module, keepers, place, series.flip(0), state)
                outputs.append(backwards.flip(0))
            else:
                forwards, state = _direction(module, keepers, place, series, state)
                outputs.append(forwards)
            left.append(state)
        series = torch.cat(outputs, dim=-1)
        if module.dropout and layer + 1 < module.num_layers:
            series = F.dropout(series, module.dropout, module.training)

    states = tuple(torch.stack(parts) for parts in zip(*left, strict=True))
    if single:
        series, states = series.squeeze(1), tuple(part.squeeze(1) for part in states)
    elif module.batch_first:
        series = series.transpose(0, 1)
    return series, states if is_lstm else states[0]


RECURRENT = Kind("recurrent", _weights, _forward)

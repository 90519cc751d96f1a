"""Small networks of each kind of layer that can be captured, and what a hook delivers for them."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress


class First(nn.Module):
    """A layer of which only the first output goes on, as with recurrent layers."""

    def __init__(self, layer: nn.Module, keeps_state: bool = False) -> None:
        super().__init__()
        self.layer, self.keeps_state = layer, keeps_state

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = self.layer(x)
        parts = state if isinstance(state, tuple) else (state,)
        return outputs.sum() + sum(part.square().sum() for part in parts) if self.keeps_state else outputs


class WithState(nn.Module):
    """A recurrent layer that is given its state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.state = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        state = self.state(x[:, 0]).unsqueeze(0)
        return self.layer(x, (state, state.sin()) if isinstance(self.layer, nn.LSTM) else state)[0]


def images(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda rows, generator: torch.randn(rows, *shape, generator=generator, dtype=torch.float64)


def tokens(rows: int, generator: torch.Generator) -> Tensor:
    # Few tokens, so that some come twice; 0 is the padding.
    return torch.randint(0, 4, (rows, 5), generator=generator)


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(40, 48), nn.Tanh(), nn.Linear(48, 33, bias=False)), images(2, 40)),
    "conv1d": (
        lambda: conv(nn.Conv1d(24, 32, 3, padding=1), nn.Tanh(), nn.Conv1d(32, 24, 2, dilation=2)),
        images(24, 4),
    ),
    "conv2d": (lambda: conv(nn.Conv2d(12, 32, 3, stride=2, padding=(1, 0)), nn.Conv2d(32, 20, 1)), images(12, 4, 5)),
    "conv3d": (lambda: conv(nn.Conv3d(8, 24, 2, stride=(1, 2, 1), padding=(0, 1, 0))), images(8, 2, 2, 3)),
    "grouped": (lambda: conv(nn.Conv2d(16, 48, 3, groups=2), nn.Conv2d(48, 48, 2, groups=4)), images(16, 4, 4)),
    "same": (lambda: conv(nn.Conv2d(16, 32, (4, 2), padding="same")), images(16, 2, 3)),
    "circular": (lambda: conv(nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular")), images(16, 2, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(60, 16, padding_idx=0), nn.Linear(16, 40)), tokens),
    "elman": (lambda: First(nn.RNN(32, 40, nonlinearity="relu", batch_first=True)), images(3, 32)),
    "gru": (lambda: First(nn.GRU(32, 40, batch_first=True), keeps_state=True), images(3, 32)),
    "lstm": (lambda: First(nn.LSTM(32, 24, num_layers=2, bidirectional=True, batch_first=True)), images(3, 32)),
    "projected": (lambda: First(nn.LSTM(32, 64, proj_size=32, batch_first=True), keeps_state=True), images(3, 32)),
    "stateful": (lambda: WithState(nn.LSTM(32, 32, batch_first=True)), images(3, 32)),
}
"""Networks and their inputs, by the name of what is tried."""


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(7)
    return NETS[name][0]().to(dtype)


def loss_of(model: nn.Module, name: str, seed: int, rows: int, dtype: torch.dtype) -> Tensor:
    """A loss over a batch of its own for each seed."""
    x = NETS[name][1](rows, torch.Generator().manual_seed(seed))
    y = model(x.to(dtype) if x.is_floating_point() else x)
    return (y + 0.3).square().sum() / 7


@functools.cache
def bounds_of(name: str, world_size: int, accumulate: int = 1) -> compress.Bounds:
    """Bounds of a network for batches of one sample, traced once: rows of workers and passes only add up."""
    if (world_size, accumulate) == (1, 1):
        x = NETS[name][1](1, torch.Generator())
        return compress.rank_bounds(network(name), (x,), loss=lambda y: (y + 0.3).square().sum())
    single = bounds_of(name, 1)
    entries = {
        key: replace(
            bound,
            rank=min(*bound.shape, bound.rank * world_size * accumulate),
            rows=None if bound.rows is None else bound.rows * accumulate,
        )
        for key, bound in single.items()
    }
    return replace(single, entries=entries, world_size=world_size, accumulation_steps=accumulate)


def all_bounds(world_size: int, accumulate: int = 1) -> dict[str, compress.Bounds]:
    return {name: bounds_of(name, world_size, accumulate) for name in NETS}


def delivered(
    rank: int,
    bounds: compress.Bounds,
    name: str,
    register: dict[str, Any],
    *,
    rows: Sequence[Sequence[int]] = ((1,) * 3,),
    dtype: torch.dtype = torch.float64,
    ddp: dict[str, Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> dict[str, Any]:
    """Train some steps; `rows[step][rank]` are the samples of a batch, as many in each pass of a step.

    Returns:
        error: the largest relative deviation of a delivered gradient from the true mean.
        dense: parameters (matrices) that the plan sends dense.
        sent, planned: bytes of all steps, and of the plan in one.
        gradients, true: of the last step.
        state: the compression state.
    """
    model, twin = network(name, dtype), network(name, dtype)
    world_size, accumulate = bounds.world_size, bounds.accumulation_steps
    wrapped = DistributedDataParallel(wrap(model), **(ddp or {}))
    state = compress.register(wrapped, bounds=bounds, **register)
    error = 0.0
    for step, batch in enumerate(rows):
        wrapped.zero_grad()
        twin.zero_grad()
        for turn in range(accumulate):
            seed = 1000 * step + 100 * turn
            with contextlib.nullcontext() if turn + 1 == accumulate else wrapped.no_sync():
                loss_of(wrapped, name, seed + rank, batch[rank], dtype).backward()
            for worker in range(world_size):
                (loss_of(twin, name, seed + worker, batch[worker], dtype) / world_size).backward()
        true = {key: parameter.grad.clone() for key, parameter in twin.named_parameters()}
        found = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
        errors = [(found[key] - true[key]).norm() / true[key].norm().clamp(min=1e-30) for key in true]
        error = max(error, *(float(value) for value in errors))
    return {
        "error": error,
        "dense": [assignment.info.name for assignment in state.plan.matrices if assignment.method == "dense"],
        "sent": state.bytes_sent,
        "planned": state.plan.bytes,
        "gradients": found,
        "true": true,
        "state": state,
    }

"""Drawn networks (see `architectures`) built, bounded and measured."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from architectures import Network
from blocks import sequence
from measured import gradients
from torch import Tensor, nn

from compress import rank_bounds

Batch = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
_CLEAR = 1e3


class Matrix(NamedTuple):
    """One weight of one network.

    `measured` is the highest rank over all draws, `violated` a rank above the bound beyond any doubt, and
    `unclear` one that roundoff may explain.
    """

    name: str
    shape: tuple[int, int]
    bound: int
    measured: int
    violated: bool
    unclear: bool
    reason: str


class Whole(nn.Module):
    """The blocks in a row; a carried state goes to the first."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.blocks = sequence(network.blocks)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, state) if i == 0 and state is not None else block(x)
        return x


def build(network: Network) -> nn.Module:
    return Whole(network).double().train(network.training)


def redraw(model: nn.Module) -> None:
    """Weights that are generic and well conditioned, those of norms and running statistics included."""
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() < 2:
                parameter.copy_(torch.randn_like(parameter) + torch.sign(torch.randn_like(parameter)) / 2)
                continue
            flat = torch.randn(parameter.shape[0], parameter[0].numel(), dtype=torch.float64)
            u, _, v = torch.linalg.svd(flat, full_matrices=False)
            spread = 0.6 + torch.rand(min(flat.shape), dtype=torch.float64)
            parameter.copy_(((u * spread) @ v).view_as(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand_like(buffer) + 0.5)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def loss_of(network: Network) -> Callable[..., Tensor]:
    def cross_entropy(y: Tensor, t: Tensor) -> Tensor:
        if not network.image and y.dim() == 3:
            y = y.transpose(1, 2)
        return F.cross_entropy(y, t)

    def two(y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return F.mse_loss(y, t) + 0.3 * (y - s).square().sum() / len(y)

    def written_out(y: Tensor, t: Tensor) -> Tensor:
        return ((y - t) ** 2).mean()

    named = {"cross_entropy": cross_entropy, "two": two, "written_out": written_out}
    return named.get(network.loss, F.mse_loss)


def batches(network: Network, model: nn.Module) -> list[Batch]:
    """One for each backward pass; all inputs lie in one space where the network has an `input_rank`."""
    wide, found = network.shape[-1], []
    space = None if network.input_rank is None else normal(network.input_rank, wide)
    for _ in range(network.workers * network.accumulation):
        if space is None:
            x = normal(network.batch, *network.shape)
        else:
            x = normal(network.batch, *network.shape[:-1], len(space)) @ space
        given = (x,) if network.carried is None else (x, normal(network.batch, network.carried))
        out = tuple(model(*given).shape)
        if network.loss == "cross_entropy":
            axis = 1 if len(out) == 2 or _channels_first(network, out) else 2
            shape = tuple(size for position, size in enumerate(out) if position != axis)
            targets: tuple[Tensor, ...] = (torch.randint(0, out[axis], shape),)
        elif network.loss == "own_input":
            targets = (x,)
        else:
            targets = tuple(normal(*out) for _ in range(2 if network.loss == "two" else 1))
        found.append((given, targets))
    return found


def _channels_first(network: Network, out: tuple[int, ...]) -> bool:
    return network.image and len(out) == len(network.shape) + 1


def _measured(model: nn.Module, network: Network, drawn: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients, and how far roundoff moves them: shift weights by some units in the last place and look."""
    loss = loss_of(network)
    passes = [lambda m, x=x, t=t: loss(m(*x), *t) for x, t in drawn]
    exact = gradients(model, passes)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-15 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    moved = gradients(model, passes)
    return exact, {name: float((exact[name] - moved[name]).norm()) for name in exact}


def examine(network: Network, seed: int = 0, draws: int = 3) -> list[Matrix]:
    """Every weight's bound beside the rank measured; drawn anew while some rank is below its bound."""
    torch.manual_seed(seed)
    model = build(network)
    redraw(model)
    drawn = batches(network, model)
    bounds = rank_bounds(
        model,
        drawn[0][0],
        loss=loss_of(network),
        targets=drawn[0][1],
        world_size=network.workers,
        accumulation_steps=network.accumulation,
        training=network.training,
        input_rank=network.input_rank,
    )
    measured = dict.fromkeys(bounds, 0)
    violated, unclear = dict.fromkeys(bounds, False), dict.fromkeys(bounds, False)
    for attempt in range(draws):
        if attempt:
            redraw(model)
            drawn = batches(network, model)
        exact, noise = _measured(model, network, drawn)
        for name, matrix in exact.items():
            values = torch.linalg.svdvals(matrix)
            floor = max(100 * noise[name], 1e-14 * float(values[0]), 1e-30)
            bound = bounds[name].rank
            found = int((values > floor).sum())
            if found > bound:
                clear = float(values[bound]) > _CLEAR * floor
                violated[name] |= clear
                unclear[name] |= not clear
                found = found if clear else bound
            measured[name] = max(measured[name], found)
        if all(measured[name] == bounds[name].rank for name in bounds):
            break
    return [
        Matrix(
            name,
            bounds[name].shape,
            bounds[name].rank,
            measured[name],
            violated[name],
            unclear[name],
            bounds[name].reason,
        )
        for name in bounds
    ]


def telling(matrix: Matrix) -> bool:
    """Whether a matrix says something of tightness: its rank is below what any matrix of its shape has."""
    return matrix.measured < min(matrix.shape)

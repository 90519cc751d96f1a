"""Small networks of the contract suite, their batches and their true mean gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import compress

ROWS = 2
"""Rows of a worker's batch: few enough that dAD is worth its bytes."""

ACCUMULATED = 3
"""The most backward passes of a step."""


def linear() -> nn.Sequential:
    """Biases, a norm, and a bottleneck that bounds every gradient."""
    bottleneck = nn.Linear(40, 4, bias=False)
    return nn.Sequential(nn.Linear(24, 40), bottleneck, nn.Linear(4, 40), nn.LayerNorm(40), nn.Linear(40, 24))


def leaky() -> nn.Sequential:
    """Nearly linear around a bottleneck: gradients are near to a low rank, and no lower."""
    slope = nn.LeakyReLU(0.9)
    return nn.Sequential(nn.Linear(24, 40), slope, nn.Linear(40, 4), slope, nn.Linear(4, 40), slope, nn.Linear(40, 24))


def convolutional() -> nn.Sequential:
    """Kernels of 3 × 3 and 1 × 1 around a bottleneck of two channels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 2, 1, bias=False),
        nn.Conv2d(2, 40, 3),
        nn.GroupNorm(1, 40),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(40, 24),
    )


class Branch(nn.Module):
    """One layer of two is used at a time, maybe neither on one of the workers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.before, self.after = nn.Linear(24, 3), nn.Linear(3, 24)
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.before(x))
        return x if self.turn == 0 else self.first(x) if self.turn == 1 else self.second(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linear, (24,)),
    "leaky": (leaky, (24,)),
    "convolutional": (convolutional, (3, 6, 6)),
    "branch": (Branch, (24,)),
}
"""Builders, and the shape of one sample.

In the first three every parameter fills whole lines of 64 bytes: products of matrices that lie otherwise in memory, as
in other buckets, differ in their last bits.
"""


def build(network: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network, with the same weights whenever it is built."""
    torch.manual_seed(1)
    return NETWORKS[network][0]().to(dtype)


class Checkpointed(nn.Sequential):
    """A Sequential that computes its activations again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(self.reentrant)  # without which the first layer would get no gradient
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


def squared(output: Tensor, target: Tensor) -> Tensor:
    """A loss that is a sum over rows, so that workers with fewer rows count for less, and none with none."""
    return (output - target).square().sum() / 64


@dataclass(frozen=True)
class Batches:
    """Every worker's batches: whatever worker asks, it can have those of all."""

    network: str
    world_size: int
    dtype: torch.dtype = torch.float64

    def __call__(self, rank: int, index: int, event: str = "plain") -> tuple[Tensor, Tensor]:
        """The batch of a worker; `event` says what is special in it."""
        generator = torch.Generator().manual_seed(1000 * index + (0 if event == "one row" else rank))
        x = torch.randn(ROWS, *NETWORKS[self.network][1], generator=generator, dtype=torch.float64)
        y = torch.randn(ROWS, 24, generator=generator, dtype=torch.float64)
        half = x.shape[1] // 2
        if event == "one row":  # on all workers: the gradient's rank falls to 1
            x, y = x[:1].expand_as(x), y[:1].expand_as(y)
        elif event == "first features":
            x[:, half:] = 0
        elif event == "other features":
            x[:, :half] = 0
        elif event == "empty" and self.world_size > 1 and rank == self.world_size - 1:
            x, y = x[:0], y[:0]
        return x.to(self.dtype), y.to(self.dtype)

    def loss(self, model: nn.Module, rank: int, index: int, event: str = "plain") -> Tensor:
        """The loss of a worker's batch; zero in every parameter in the event "zero"."""
        x, y = self(rank, index, event)
        inside = model.module if isinstance(model, DistributedDataParallel) else model
        if isinstance(inside, Branch):
            inside.turn = (index + rank) % 3
        return squared(model(x), y) * (0 if event == "zero" else 1)


@cache
def bounds(network: str, world_size: int) -> compress.Bounds:
    """Bounds that hold for batches of up to three accumulation steps, whatever the type."""
    model, (x, y) = build(network), Batches(network, world_size)(0, 0)
    if isinstance(model, Branch):
        model.turn = 1
    return compress.rank_bounds(
        model, (x,), loss=squared, targets=(y,), world_size=world_size, accumulation_steps=ACCUMULATED
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, zeros where there is none."""
    return {
        name.removeprefix("module.").replace("_orig_mod.", ""): (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
        )
        for name, parameter in model.named_parameters()
    }


def true_mean(twin: nn.Module, batches: Batches, indices: list[int], event: str = "plain") -> dict[str, Tensor]:
    """The obviously correct twin: every worker's batches one after another, in one process."""
    twin.zero_grad()
    for rank in range(batches.world_size):
        for index in indices:
            (batches.loss(twin, rank, index, event) / batches.world_size).backward()
    return gradients(twin)

"""Small networks, their losses and bounds, alike on every worker of a test."""

import torch
import torch.nn.functional as F
from torch import nn

import compress

ROWS = 6
"""Rows of a worker's batch: few enough that dAD is worth its bytes."""


def deep(width: int = 24, bottleneck: int = 4, depth: int = 4, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(2)
    widths = [width] * depth
    widths[depth // 2] = bottleneck
    pairs = zip([width, *widths[:-1]], widths, strict=True)
    return nn.Sequential(*(nn.Linear(a, b, bias=False, dtype=dtype) for a, b in pairs))


def loss_of(model: nn.Module, rank: int, step: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    width = next(model.parameters()).shape[1]
    x = torch.randn(ROWS, width, generator=generator, dtype=dtype)
    y = model(x)
    return F.mse_loss(y, torch.randn(y.shape, generator=generator, dtype=dtype))


def bounds_of(model: nn.Module, world_size: int, dtype: torch.dtype = torch.float64) -> compress.Bounds:
    width = next(model.parameters()).shape[1]
    x = torch.randn(ROWS, width, dtype=dtype)
    target = torch.randn(model(x).shape, dtype=dtype)
    return compress.rank_bounds(model, (x,), loss=F.mse_loss, targets=(target,), world_size=world_size)


def grads(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def true_mean(
    twin: nn.Module, step: int, dtype: torch.dtype = torch.float64, world_size: int = 2
) -> dict[str, torch.Tensor]:
    """The obviously correct twin: every worker's batch one after another, in one process."""
    twin.zero_grad()
    for rank in range(world_size):
        (loss_of(twin, rank, step, dtype) / world_size).backward()
    return grads(twin)

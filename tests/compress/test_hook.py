"""Compression in a plain DDP script: exact where it says so, on many buckets, with accumulation."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress

BATCH = 2  # few enough rows that dAD is worth its bytes


def network(bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    widths = [32, 48, 4, 48, 24]
    layers = [nn.Linear(a, b, bias=bias, dtype=dtype) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers)


def batch(rank: int, step: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(BATCH, 32, generator=generator, dtype=dtype)
    return x, torch.randn(BATCH, 24, generator=generator, dtype=dtype)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("module."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def mean_gradients(model: nn.Module, world_size: int, steps: list[int]) -> dict[str, torch.Tensor]:
    """The obviously correct twin: every worker's batches one after another, in one process."""
    model.zero_grad()
    for rank in range(world_size):
        for step in steps:
            x, y = batch(rank, step)
            (F.mse_loss(model(x), y) / world_size).backward()
    return gradients(model)


def train_and_compare(rank, world_size, register, steps, bucket_cap_mb, accumulate):
    """Largest relative deviation from the true mean gradient, over all parameters and steps."""
    model, twin = network(), network()
    x, y = batch(rank, 0)
    bounds = compress.rank_bounds(
        model, (x,), loss=F.mse_loss, targets=(y,), world_size=world_size, accumulation_steps=accumulate
    )
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_cap_mb)
    state = compress.register(ddp, bounds=bounds, **register)
    worst = 0.0
    for step in range(steps):
        used = list(range(step * accumulate, (step + 1) * accumulate))
        ddp.zero_grad()
        for index in used:
            x, y = batch(rank, index)
            with contextlib.nullcontext() if index == used[-1] else ddp.no_sync():
                F.mse_loss(ddp(x), y).backward()
        true = mean_gradients(twin, world_size, used)
        for name, gradient in gradients(ddp).items():
            deviation = (gradient - true[name]).norm() / true[name].norm()
            worst = max(worst, float(deviation))
    return worst, state.bytes_sent / steps, state.plan.bytes, {a.method for a in state.plan.matrices}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("bucket_cap_mb", "accumulate"), [(0.005, 1), (0.005, 3), (25, 1)])
@pytest.mark.parametrize(
    "register",
    [
        {"compressor": "dense"},
        {"compressor": "powersgd", "policy": "bound"},
        {"compressor": {"kind": "dad"}},
        {"compressor": ["powersgd", "dad"], "policy": {"kind": "bound"}},
    ],
    ids=["dense", "powersgd", "dad", "cheapest"],
)
def test_lossless_plans_deliver_the_mean_gradient(workers, world_size, register, bucket_cap_mb, accumulate):
    results = workers(world_size)(train_and_compare, world_size, register, 3, bucket_cap_mb, accumulate)
    for worst, sent, planned, methods in results:
        assert worst < 1e-11
        assert sent == planned
        if register["compressor"] == "powersgd":
            assert "powersgd" in methods
        if register["compressor"] == {"kind": "dad"}:
            assert "dad" in methods

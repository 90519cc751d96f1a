"""What PowerSGD promises, beyond the contract of all compressors (tests/contract)."""

import pytest
import torch
from measured import gradients
from measured import rank as rank_of
from nets import bounds_of, deep, grads, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.orthonormal import orthonormal


def dead_rows_after_zero(rank):
    """Delivered norms when the first step's gradient is zero, and the first rows of all gradients are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24, bias=False))
    ddp = DistributedDataParallel(model)
    compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": 3})
    norms = []
    for step in range(4):
        ddp.zero_grad()
        x = torch.randn(32, 24, generator=torch.Generator().manual_seed(step))
        (min(step, 1) * ddp(x)[:, 3:].square().mean()).backward()
        norms.append(float(grads(ddp)["0.weight"].norm()))
    return norms


def test_a_zero_gradient_does_not_stop_a_warm_start_for_ever(workers):
    # From Q = 0 the first rows would be looked at alone, and they are zero: nothing would be sent again.
    for norms in workers(2)(dead_rows_after_zero):
        assert norms[0] == 0
        assert min(norms[1:]) > 0


def residual_along_delivered(rank):
    model = deep()
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": 2})
    loss_of(ddp, rank, 0).backward()
    delivered, residual = grads(ddp)["0.weight"], state.state_dict()["memories"]["0.weight"]["residual"]
    return float((delivered.mT @ residual).norm() / (delivered.norm() * residual.norm()))


def test_error_feedback_is_true_to_the_worker(workers):
    # A worker's own remainder holds nothing along P; the gradient minus the global approximation does,
    # and grows without bound.
    for share in workers(2)(residual_along_delivered):
        assert share < 1e-12


def low_rank_delivery(rank, asked):
    model = deep()
    ddp = DistributedDataParallel(model)
    bounds = bounds_of(model, 2)
    state = compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": asked}, bounds=bounds)
    loss_of(ddp, rank, 0).backward()
    name = "0.weight"
    return rank_of(grads(ddp)[name]), state.plan[name].rank, sorted(state.state_dict()["memories"][name])


@pytest.mark.parametrize(("asked", "kept"), [(1, ["Q", "residual"]), (3, ["Q", "residual"]), (4, [])])
def test_powersgd_delivers_the_rank_asked_for_and_keeps_state_only_below_the_bound(workers, asked, kept):
    for found, planned, memory in workers(2)(low_rank_delivery, asked):
        assert found == planned == asked
        assert memory == kept


def exact_draws(rank, draws, oversample):
    """Largest error at the bound over many draws of Q, in float32."""
    model, twin = deep(dtype=torch.float32), deep(dtype=torch.float32)
    bounds = bounds_of(model, 2, torch.float32)
    ddp = DistributedDataParallel(model)
    compress.register(ddp, compressor={"kind": "powersgd", "oversample": oversample}, policy="bound", bounds=bounds)
    passes = [lambda m, r=r: loss_of(m, r, 0, torch.float32) for r in range(2)]
    true = gradients(twin, passes)["0.weight"]
    worst = 0.0
    for _ in range(draws):
        ddp.zero_grad()
        loss_of(ddp, rank, 0, torch.float32).backward()
        worst = max(worst, float((grads(ddp)["0.weight"] - true).norm() / true.norm()))
    return worst


def test_without_oversampling_some_draws_are_not_exact(workers):
    # What the extra columns are for; with them the contract holds 300 draws to 1e-5.
    assert max(workers(2)(exact_draws, 300, 0)) > 1e-5


def test_factors_that_are_taken_together_are_normalised_apart():
    # The reference implementation normalises factors of rank 1 and one shape as if they were one.
    rows = torch.randn(5, 1, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None, None]
    lengths = torch.linalg.vector_norm(orthonormal(rows), dim=-1)
    assert torch.allclose(lengths, torch.ones(5, 1), atol=1e-6)

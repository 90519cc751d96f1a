"""The contract in other types: exact in float32 in every draw, kept and agreed upon in coarse ones."""

import pytest
import torch
from cases import CASES, cases
from contract_nets import Batches, build, gradients, true_mean
from delivery import Setting, bounds, deviation, equal, measure, wrap

DRAWS = 300
COARSE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


def draws(rank, case, traced):
    """The worst error over many steps with the same gradient, in float32, of which random factors alone differ."""
    batches = Batches(case.network, 2, torch.float32)
    ddp, _ = wrap(case, batches, Setting(dtype=torch.float32, bounds=traced))
    true, worst = true_mean(build(case.network), Batches(case.network, 2), [0]), 0.0
    for _ in range(DRAWS):
        ddp.zero_grad()
        batches.loss(ddp, rank, 0).backward()
        worst = max(worst, deviation(gradients(ddp), true))
    return worst


@pytest.mark.parametrize("case", cases(lossless=True), ids=str)
def test_every_draw_is_exact_in_float32(workers, case):
    assert max(workers(2)(draws, case, bounds(case.network, 2))) <= case.loss_float32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_coarse_types_are_kept_agreed_upon_and_never_certified(workers, case):
    events = ("plain", "plain", "empty", "plain")
    settings = {str(dtype): Setting(dtype=dtype, bucket_mb=1e-3, events=events) for dtype in COARSE}
    run = measure(workers, case, 2, settings)
    for dtype, loss in COARSE.items():
        for delivery in run[str(dtype)]:
            assert {gradient.dtype for step in delivery.delivered for gradient in step.values()} == {dtype}
            assert all(delivery.finite)
            assert delivery.owed < loss
            assert all(map(equal, delivery.delivered, run[str(dtype)][0].delivered))
            assert not delivery.certified_methods - {"dense"}

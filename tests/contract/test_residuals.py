"""Residuals are the worker's own remainder: they stay bounded on a stationary gradient."""

import pytest
import torch
from cases import cases
from contract_nets import Batches
from delivery import Setting, wrap

STEPS = 300


def norms(rank, case):
    """The norm of all residuals of this worker after each step; weights stay as they are."""
    batches = Batches(case.network, 2, torch.float32)
    ddp, state = wrap(case, batches, Setting(dtype=torch.float32))
    found = []
    for step in range(STEPS):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        kept = [memory["residual"] for memory in state.state_dict()["memories"].values() if "residual" in memory]
        found.append(sum(float(residual.square().sum()) for residual in kept) ** 0.5)
    return found


@pytest.mark.parametrize("case", cases(keeps=True), ids=str)
def test_residuals_stay_bounded(workers, case):
    # A worker that keeps its gradient minus the global approximation has 1.48 times as much between these windows.
    for found in workers(2)(norms, case):
        assert sum(found[250:300]) < 1.3 * sum(found[100:150])

"""Safety: a number that is not finite, on one worker, loses the step on all of them, and nothing else."""

from dataclasses import dataclass

import pytest
import torch
from cases import CASES
from contract_nets import Batches, build, gradients, true_mean
from delivery import Setting, add, bounds, deviation, equal, mean_residuals, wrap, zeros
from torch import Tensor

BEFORE, AFTER = 2, 3


@dataclass
class Poisoning:
    """What came of one step whose gradient was not finite on one worker."""

    poisoned: dict[str, bool]
    finite: list[bool]
    kept: bool
    counted: int
    delivered: list[dict[str, Tensor]]
    worst_after: float
    owed: float


def poison(rank, case, where, value, traced):
    """Train on; before one step's exchange the last worker's gradient of parameter `where` gets a value.

    With an empty `where` it is the worker's input that gets it.
    """
    batches = Batches(case.network, 2)
    twin = build(case.network)
    ddp, state = wrap(case, batches, Setting(bucket_mb=1e-3, bounds=traced))
    received, expected = zeros(twin), zeros(twin)
    delivered, finite, worst, poisoned, kept = [], [], 0.0, {}, True
    for step in range(BEFORE + 1 + AFTER):
        bad = step == BEFORE
        before = state.state_dict()["memories"]
        ddp.zero_grad()
        x, y = batches(rank, step)
        hook = None
        if bad and rank == 1:
            if where:
                parameter = dict(ddp.module.named_parameters())[where]
                hook = parameter.register_hook(lambda gradient: _with(gradient, value))
            else:
                x = _with(x, value)
        ((ddp(x) - y).square().sum() / 64).backward()
        if hook is not None:
            hook.remove()
        found = gradients(ddp)
        delivered.append(found)
        finite.append(state.finite)
        if bad:
            poisoned = {name: not bool(gradient.isfinite().all()) for name, gradient in found.items()}
            after = state.state_dict()["memories"]
            kept = before.keys() == after.keys() and all(equal(before[name], after[name]) for name in before)
            continue
        true = true_mean(twin, batches, [step])
        worst = max(worst, deviation(found, true))
        add(received, found)
        add(expected, true)
    add(received, {name: rest.view_as(received[name]) for name, rest in mean_residuals(state).items()})
    return Poisoning(poisoned, finite, kept, state.nonfinite_steps, delivered, worst, deviation(received, expected))


def _with(tensor, value):
    """A copy with one number changed."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def poison_all(rank, case, traced):
    places = [name for name, _ in build(case.network).named_parameters()]
    values = {"": float("inf")} | {name: (float("nan"), float("-inf"))[index % 2] for index, name in enumerate(places)}
    return {where: poison(rank, case, where, value, traced) for where, value in values.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_workers_nan_or_infinity_reaches_all_and_changes_nothing_that_is_kept(workers, case):
    seen = workers(2)(poison_all, case, bounds(case.network, 2))
    for where in seen[0]:
        for run in (worker[where] for worker in seen):
            hit = [where] if where else [name for name in run.poisoned if name.endswith("weight")]
            assert all(run.poisoned[name] for name in hit), where
            assert run.finite == [True] * BEFORE + [False] + [True] * AFTER, where
            assert run.counted == 1
            assert run.kept, where
            assert all(map(equal, run.delivered, seen[0][where].delivered)), where
            assert run.owed <= case.owes, where
            assert case.loss is None or run.worst_after <= case.loss, where


def neighbours(rank):
    """The memories of a finite matrix below its bound, beside a lossless one that is not finite; two rounds each."""
    import compress

    batches = Batches("linear", 2)
    model = build("linear")
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    plan = compress.make_plan(model, "powersgd", "bound", bounds=bounds_here(batches), world_size=2)
    below = compress.make_plan(model, "powersgd", {"kind": "fixed", "rank": 2}, world_size=2)
    mixed = compress.Plan({**plan, "4.weight": below["4.weight"]}, 2)
    state = compress.register(ddp, mixed)
    batches.loss(ddp, rank, 0).backward()
    before = state.state_dict()["memories"]["4.weight"]
    if rank == 0:
        dict(model.named_parameters())["0.weight"].register_hook(lambda gradient: gradient * float("nan"))
    batches.loss(ddp, rank, 1).backward()
    return bool(before), equal(before, state.state_dict()["memories"]["4.weight"])


def bounds_here(batches):
    return bounds(batches.network, batches.world_size)


def test_the_verdict_is_one_for_all_matrices(workers):
    assert workers(2)(neighbours) == [(True, True)] * 2

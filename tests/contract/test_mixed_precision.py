"""Mixed precision: residuals are unscaled under a GradScaler, and nothing is certified under coarse arithmetic."""

import contextlib

import pytest
import torch
from cases import CASES, cases
from coarse import coarse
from contract_nets import Batches, build, gradients, true_mean
from delivery import Setting, add, bounds, deviation, mean_residuals, wrap, zeros
from torch.amp.grad_scaler import GradScaler

import compress

SCALES = (1.0, 64.0, 64.0, 2.0**-5, 1024.0)


def scaled(rank, case, traced):
    """What is owed in the end, and errors, when the scale changes from step to step; one step overflows."""
    batches, twin = Batches(case.network, 2), build(case.network)
    scaler = GradScaler("cpu")
    scaler.scale(torch.zeros(()))  # it makes its scale when first used
    ddp, state = wrap(case, batches, Setting(bounds=traced), grad_scaler=scaler)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.0)
    received, expected, errors, skipped = zeros(twin), zeros(twin), [], []
    for step, scale in enumerate(SCALES):
        scaler.update(scale)
        optimizer.zero_grad()
        loss = scaler.scale(batches.loss(ddp, rank, step))
        if step == 2 and rank == 1:
            loss = loss * float("inf")
        loss.backward()
        scaler.unscale_(optimizer)
        inf = scaler._found_inf_per_device(optimizer)
        skipped.append(any(bool(found) for found in inf.values()))
        scaler.step(optimizer)
        scaler.update(scale)
        if step == 2:
            continue
        found, true = gradients(ddp), true_mean(twin, batches, [step])
        errors.append(deviation(found, true))
        add(received, found)
        add(expected, true)
    add(received, {name: rest.view_as(received[name]) for name, rest in mean_residuals(state).items()})
    return deviation(received, expected), max(errors), skipped, state.nonfinite_steps


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_lost_across_changes_of_scale(workers, case):
    for owed, worst, skipped, counted in workers(2)(scaled, case, bounds(case.network, 2)):
        assert owed <= case.owes
        assert case.loss is None or worst <= case.loss
        assert skipped == [False, False, True, False, False]
        assert counted == 1


def under(rank, case, how, traced):
    """The worst loss, what is owed, what stays certified, and what is kept, under coarse arithmetic."""
    batches = Batches(case.network, 2, torch.float32)
    ddp, state = wrap(case, batches, Setting(dtype=torch.float32, bounds=traced))
    twin = build(case.network, torch.float32)
    received, expected, worst = zeros(twin), zeros(twin), 0.0
    for step in range(4):
        ddp.zero_grad()
        with coarse(how) as backward:
            loss = batches.loss(ddp, rank, step)
        with backward:
            loss.backward()
        twin.zero_grad()
        for worker in range(2):
            with coarse(how) as backward:
                loss = batches.loss(twin, worker, step) / 2
            with backward:
                loss.backward()
        found, true = gradients(ddp), gradients(twin)
        worst = max(worst, deviation(found, true))
        add(received, found)
        add(expected, true)
    rests = mean_residuals(state)
    add(received, {name: rest.view_as(received[name]) for name, rest in rests.items()})
    used = {name: assignment for name, assignment in state.plan.items() if assignment.info.is_matrix}
    certified = {name for name, a in used.items() if a.lossless and a.method != "dense"}
    return worst, deviation(received, expected), certified, {a.method for a in used.values()}, set(rests)


@pytest.mark.parametrize("how", ["autocast", "bf16 products"])
@pytest.mark.parametrize("case", cases(lossless=True), ids=str)
def test_nothing_is_certified_under_coarse_arithmetic(workers, case, how):
    seen = workers(2)(under, case, how, bounds(case.network, 2))
    for worst, owed, certified, methods, residuals in seen:
        assert worst <= 1e-2
        assert owed <= 1e-5 or not residuals
        assert not certified
        assert bool(residuals) == bool({"powersgd", "svd"} & methods)


def some_saw_autocast(rank, case, traced):
    """One worker alone computes under autocast, and the plan changes to dense then: gradients of the next step."""
    batches = Batches(case.network, 2, torch.float32)
    ddp, state = wrap(case, batches, Setting(dtype=torch.float32, bounds=traced))
    with coarse("autocast") if rank == 0 else contextlib.nullcontext(contextlib.nullcontext()):
        loss = batches.loss(ddp, rank, 0)
    loss.backward()
    kept = sorted(name for name, memory in state.state_dict()["memories"].items() if "residual" in memory)
    state.change_plan(compress.make_plan(ddp, "dense", world_size=2))
    for step in (1, 2):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
    return kept, deviation(gradients(ddp), true_mean(build(case.network, torch.float32), batches, [2]))


def test_workers_may_differ_in_what_they_keep_when_the_plan_changes(workers):
    case = next(case for case in CASES if case.name == "powersgd")
    (kept, first), (other, second) = workers(2)(some_saw_autocast, case, bounds(case.network, 2))
    assert kept
    assert not other
    assert max(first, second) < 1e-5

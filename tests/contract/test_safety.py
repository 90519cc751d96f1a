"""What else must not break a step: sizes of zero, ignored parameters, two models, broken passes, changed buckets."""

import gc
import weakref
from unittest.mock import patch

import pytest
import torch
from cases import CASES
from contract_nets import Batches, build, gradients, squared, true_mean
from delivery import Setting, bounds, deviation, equal, wrap
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress

FIXED = {"compressor": "powersgd", "policy": {"kind": "fixed", "rank": 2}}


class Odd(nn.Module):
    """Parameters of odd shapes beside an ordinary one: no rows, no columns, no axes, one row, one column."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ordinary = nn.Parameter(torch.randn(24, 24, dtype=torch.float64))
        shapes = {
            "empty": (0,),
            "rowless": (0, 4),
            "columnless": (4, 0),
            "scalar": (),
            "row": (1, 24),
            "column": (24, 1),
        }
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))

    def forward(self, x):
        everything = sum(parameter.square().sum() for parameter in self.parameters())
        return x @ self.ordinary * self.scalar * everything + self.row * self.column.mT


def odd_shapes(rank):
    results = []
    for register in ({"compressor": "dense"}, FIXED):
        ddp = DistributedDataParallel(Odd())
        compress.register(ddp, **register)
        for step in range(3):
            ddp.zero_grad()
            generator = torch.Generator().manual_seed(2 * step + rank)
            ddp(torch.randn(3, 24, dtype=torch.float64, generator=generator)).square().mean().backward()
        found = gradients(ddp)
        results.append((all(bool(gradient.isfinite().all()) for gradient in found.values()), found))
    return results


def test_parameters_of_odd_shapes(workers):
    dense, low = zip(*workers(2)(odd_shapes), strict=True)
    for finite, found in (*dense, *low):
        assert finite
        assert found["rowless"].shape == (0, 4)
    for name in ("scalar", "row", "column", "empty"):
        assert torch.allclose(dense[0][1][name], low[0][1][name], rtol=1e-12)


def ignored_and_frozen(rank):
    """Gradients when DDP ignores one matrix and another is frozen."""
    batches = Batches("linear", 2)
    model, twin = build("linear"), build("linear")
    for network in (model, twin):
        network[1].weight.requires_grad_(False)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["0.weight", "4.bias"])
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds("linear", 2))
    for step in range(3):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
    true = true_mean(twin, batches, [2])
    twin.zero_grad()
    batches.loss(twin, rank, 2).backward()
    own = gradients(twin)
    expected = {name: own[name] if name in ("0.weight", "4.bias") else true[name] for name in true}
    return set(state.plan), deviation(gradients(ddp), expected)


def test_ignored_parameters_stay_the_workers_own(workers):
    for planned, deviation_ in workers(2)(ignored_and_frozen):
        assert not {"0.weight", "4.bias", "1.weight"} & planned
        assert deviation_ < 1e-12


def two_models(rank, case, traced):
    """Two networks with a state each, in one backward pass."""
    batches = Batches(case.network, 2)
    pairs = [wrap(case, batches, Setting(bucket_mb=1e-3, bounds=traced), seed=seed) for seed in (0, 1)]
    twin, worst, steps = build(case.network), 0.0, []
    for step in range(3):
        for ddp, _ in pairs:
            ddp.zero_grad()
        sum(batches.loss(ddp, rank, 2 * step + index) for index, (ddp, _) in enumerate(pairs)).backward()
        for index, (ddp, _) in enumerate(pairs):
            worst = max(worst, deviation(gradients(ddp), true_mean(twin, batches, [2 * step + index])))
        steps.append([state.step for _, state in pairs])
    return worst, steps


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_models_do_not_meet(workers, case):
    for worst, steps in workers(2)(two_models, case, bounds(case.network, 2)):
        assert case.loss is None or worst <= case.loss
        assert steps == [[1, 1], [2, 2], [3, 3]]


class Broken(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("broken on purpose")


def broken_pass(rank, case, traced):
    """A backward pass that fails on all workers, after some buckets have gone.

    DDP refuses to go on with such an object, so a fresh one takes up the state.
    """
    batches, setting = Batches(case.network, 2), Setting(bucket_mb=1e-3, bounds=traced)
    ddp, state = wrap(case, batches, setting)
    for step in range(2):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
    x, y = batches(rank, 2)
    hook = ddp.module[0].register_forward_hook(lambda module, args, output: Broken.apply(output))
    ddp.zero_grad()
    failed = refused = False
    try:
        squared(ddp(x), y).backward()
    except ArithmeticError:
        failed = True
    hook.remove()
    saved = state.state_dict()
    try:
        batches.loss(ddp, rank, 3).backward()
    except RuntimeError:
        refused = True
    ddp, state = wrap(case, batches, setting)
    state.load_state_dict(saved)
    batches.loss(ddp, rank, 3).backward()
    true = true_mean(build(case.network), batches, [3])
    return failed, refused, deviation(gradients(ddp), true), state.step, gradients(ddp)


@pytest.mark.parametrize("case", [case for case in CASES if case.network == "linear"], ids=str)
def test_a_backward_pass_that_fails_leaves_no_half_step(workers, case):
    seen = workers(2)(broken_pass, case, bounds(case.network, 2))
    for failed, refused, error, steps, delivered in seen:
        assert failed
        assert refused
        assert steps == 3
        assert case.loss is None or error <= case.loss
        assert equal(delivered, seen[0][4])


def options_of_zero_grad(rank):
    """Largest error when gradients are set to None, or to zero, or kept as zeros from the start."""
    batches, twin, worst = Batches("linear", 2), build("linear"), 0.0
    ddp = DistributedDataParallel(build("linear"), gradient_as_bucket_view=True)
    compress.register(ddp, compressor=["powersgd", "dad"], policy="bound", bounds=bounds("linear", 2))
    for step, to_none in enumerate((True, False, False, True, True)):
        ddp.zero_grad(set_to_none=to_none)
        batches.loss(ddp, rank, step).backward()
        worst = max(worst, deviation(gradients(ddp), true_mean(twin, batches, [step])))
    return worst


def test_gradients_may_be_none_or_zero_before(workers):
    assert max(workers(2)(options_of_zero_grad)) < 1e-11


def late_bias(rank):
    """Errors with a bias that arrives after its weight, in a bucket of its own."""
    batches, twin, errors = Batches("linear", 2), build("linear"), []
    model = build("linear")
    for layer in model:
        layer._parameters["weight"] = layer._parameters.pop("weight")
    # Where DDP looks for unused parameters it keeps its first buckets, in reverse order of registration.
    with patch("torch.distributed._DEFAULT_FIRST_BUCKET_BYTES", 1):
        ddp = DistributedDataParallel(model, bucket_cap_mb=1e-5, find_unused_parameters=True)
    compress.register(ddp, compressor="dad", bounds=bounds("linear", 2))
    for step in range(3):
        ddp.zero_grad()
        batches.loss(ddp, rank, step).backward()
        errors.append(deviation(gradients(ddp), true_mean(twin, batches, [step])))
    return max(errors)


def test_a_weight_waits_for_its_bias(workers):
    assert max(workers(2)(late_bias)) < 1e-12


def left_behind(rank, case, traced):
    """Whether anything of a DDP object and its state outlives them."""
    batches = Batches(case.network, 2)
    ddp, state = wrap(case, batches, Setting(bounds=traced))
    batches.loss(ddp, rank, 0).backward()
    watched = [weakref.ref(ddp), weakref.ref(state), weakref.ref(ddp.module)]
    del ddp, state
    gc.collect()
    return [reference() is None for reference in watched]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_outlives_the_wrapped_network(workers, case):
    # A circle through DDP's reducer would keep networks, process groups and their threads for ever.
    assert workers(2)(left_behind, case, bounds(case.network, 2)) == [[True] * 3] * 2

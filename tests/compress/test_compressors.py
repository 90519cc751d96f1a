"""What each compressor promises, on many buckets and several workers."""

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from measured import gradients
from measured import rank as rank_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit
from compress.layers import ParameterInfo

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


def many_buckets(rank, compressor, policy, width, steps):
    model = deep(width, 8, 6)
    bounds = bounds_of(model, 2)
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.02)
    state = compress.register(ddp, compressor=compressor, policy=policy, bounds=bounds)
    buckets = set()
    original = state.on_bucket

    def counted(bucket):
        buckets.add(bucket.index())
        return original(bucket)

    state.on_bucket = counted
    for step in range(steps):
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
    assert compressor in {assignment.method for assignment in state.plan.values()}
    return len(buckets), state.step, grads(ddp)


@pytest.mark.parametrize(
    ("compressor", "policy"),
    [("powersgd", "bound"), ("powersgd", {"kind": "fixed", "rank": 2}), ("dad", "none"), ("dense", "none")],
)
def test_many_buckets_end_and_workers_agree(workers, compressor, policy):
    # PyTorch's own PowerSGD hook hangs on gloo as soon as there is more than one bucket.
    results = workers(2)(many_buckets, compressor, policy, 64, 50, timeout_s=30)
    for buckets, steps, _ in results:
        assert buckets >= 4
        assert steps == 50
    first, second = (gradient for _, _, gradient in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def zero_then_true(rank, compressor, policy, dtype):
    """Errors of the steps after one whose gradient is zero on all workers."""
    model = deep(dtype=dtype)
    twin = deep(dtype=dtype)
    bounds = bounds_of(model, 2, dtype)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor=compressor, policy=policy, bounds=bounds)
    assert compressor in {assignment.method for assignment in state.plan.values()}
    errors = []
    for step in range(6):
        ddp.zero_grad()
        scale = 0.0 if step == 2 else 1.0
        (scale * loss_of(ddp, rank, step, dtype)).backward()
        passes = [lambda m, r=r, s=step: loss_of(m, r, s, dtype) for r in range(2)]
        true = {name: scale * gradient for name, gradient in gradients(twin, passes).items()}
        found = grads(ddp)
        difference = sum(float((found[name] - true[name]).square().sum()) for name in true) ** 0.5
        size = sum(float(true[name].square().sum()) for name in true) ** 0.5
        errors.append(difference / size if size else difference)
    return errors


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("compressor", ["powersgd", "dad", "dense"])
def test_a_zero_gradient_is_delivered_as_zero_and_spoils_nothing(workers, compressor, dtype, limit):
    policy = "bound" if compressor == "powersgd" else "none"
    for errors in workers(2)(zero_then_true, compressor, policy, dtype):
        assert max(errors) < limit


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


def delivered_sums(rank, steps):
    """Sum over steps of delivered and of true gradients, and the mean residual, at a rank too low."""
    import torch.distributed as dist

    model, twin = deep(), deep()
    bounds = bounds_of(model, 2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": 1}, bounds=bounds)
    name, delivered, true = "0.weight", 0.0, 0.0
    for step in range(steps):
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
        delivered = delivered + grads(ddp)[name]
        passes = [lambda m, r=r, s=step: loss_of(m, r, s) for r in range(2)]
        true = true + gradients(twin, passes)[name]
    residual = state.state_dict()["memories"][name]["residual"].clone()
    dist.all_reduce(residual)
    return delivered, true, residual / 2


def test_error_feedback_loses_nothing_for_good(workers):
    for delivered, true, residual in workers(2)(delivered_sums, 8):
        assert (delivered - true).norm() > 0.05 * true.norm()
        assert torch.allclose(delivered + residual, true, atol=1e-12)


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


def test_oversampling_keeps_every_draw_exact(workers):
    assert max(workers(2)(exact_draws, 300, 4)) < 1e-5
    assert max(workers(2)(exact_draws, 300, 0)) > 1e-5  # what the extra columns are for


class Twice(nn.Module):
    """A weight that its own layer uses, and a function besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inside = nn.Linear(48, 48, dtype=torch.float64)
        self.outside = nn.Linear(48, 48, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outside(self.inside(self.inside(x))) + F.linear(x, self.outside.weight)


def two_uses(rank, rows_by_rank):
    import logging

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("compress").addHandler(handler)
    model, twin = Twice(), Twice()

    def loss(module: nn.Module, worker: int, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(worker)
        return module(torch.randn(rows, 48, generator=generator, dtype=torch.float64)).square().mean()

    example = torch.randn(4, 48, dtype=torch.float64)
    bounds = compress.rank_bounds(model, (example,), loss=lambda y: y.square().mean(), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    worst = 0.0
    for step, rows in enumerate(rows_by_rank):
        ddp.zero_grad()
        loss(ddp, rank, rows[rank]).backward()
        twin.zero_grad()
        for worker in range(2):
            (loss(twin, worker, rows[worker]) / 2).backward()
        found, true = grads(ddp), grads(twin)
        worst = max(worst, *(float((found[name] - true[name]).norm() / true[name].norm()) for name in true))
        assert step + 1 == state.step
    return worst, messages, {name: state.plan[name].method for name in state.plan}


def test_dad_is_exact_for_repeated_uneven_and_outside_uses_and_says_what_it_sends_dense(workers):
    rows = [(4, 4), (4, 1), (9, 2), (3, 9), (4, 0)]
    for worst, messages, methods in workers(2)(two_uses, rows):
        assert worst < 1e-12
        assert methods["inside.weight"] == methods["inside.bias"] == methods["outside.weight"] == "dad"
        assert len(messages) == 1
        assert "outside.weight: inputs and adjoints of its nn.Linear do not account" in messages[0]


def resumed(rank, stop):
    """Gradients of five steps, the state saved and loaded into a fresh DDP object after `stop` of them."""
    model = deep()
    bounds = bounds_of(model, 2)

    def wrap() -> tuple[DistributedDataParallel, compress.CompressionState]:
        ddp = DistributedDataParallel(model)
        policy = {"kind": "bound", "offset": -1}
        return ddp, compress.register(ddp, compressor="powersgd", policy=policy, bounds=bounds, seed=5)

    ddp, state = wrap()
    for step in range(5):
        if step == stop:
            saved = state.state_dict()
            ddp, state = wrap()
            state.load_state_dict(saved)
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
    return grads(ddp)


def test_a_saved_state_goes_on_bit_for_bit(workers):
    through, saved = workers(2)(resumed, None), workers(2)(resumed, 3)
    for first, second in zip(through, saved, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def half_precision(rank, dtype):
    model = deep(dtype=dtype)
    bounds = bounds_of(model, 2, dtype)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="powersgd", policy="bound", bounds=bounds)
    loss_of(ddp, rank, 0, dtype).backward()
    first = next(iter(grads(ddp).values()))
    return (
        first.dtype,
        bool(first.isfinite().all()),
        any(a.lossless for a in state.plan.values() if a.method != "dense"),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_types_are_kept_and_never_certified_lossless(workers, dtype):
    assert workers(2)(half_precision, dtype) == [(dtype, True, False)] * 2


def odd_sizes(rank):
    """Largest deviation of dAD in float32 at sizes that put headers at odd places."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(31, 33), nn.Linear(33, 29))
    twin = nn.Sequential(nn.Linear(31, 33), nn.Linear(33, 29))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(3, 31)
    bounds = compress.rank_bounds(model, (x,), loss=lambda y: y.square().mean())
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    assert [assignment.method for assignment in state.plan.values()] == ["dad"] * 4 or bounds.world_size == 1
    ddp(x).square().mean().backward()
    twin(x).square().mean().backward()
    found, true = grads(ddp), grads(twin)
    return max(float((found[name] - true[name]).norm() / true[name].norm()) for name in true), state.bytes_sent


@pytest.mark.parametrize("world_size", [1, 2])
def test_dad_serves_odd_sizes_in_float32(workers, world_size):
    for worst, _ in workers(world_size)(odd_sizes):
        assert worst < 1e-5


def under_autocast(rank):
    model = deep(dtype=torch.float32)
    bounds = bounds_of(model, 2, torch.float32)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    sent = []
    for step in range(3):
        before = state.bytes_sent
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ddp, rank, step, torch.float32)
        ddp.zero_grad()
        loss.backward()
        sent.append(state.bytes_sent - before)
    return sent, state.plan.dense.bytes


def test_dad_goes_dense_for_good_where_rows_do_not_account_for_the_gradient(workers):
    for (first, *later), dense in workers(2)(under_autocast):
        assert first > dense  # factors, and then dense
        assert later == [dense] * 2


def called_by_keyword(rank):
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(24, 24, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(input=x)

    model = Keyword()
    bounds = compress.rank_bounds(model, (torch.randn(2, 24, dtype=torch.float64),), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    ddp(torch.randn(2, 24, dtype=torch.float64)).sum().backward()
    return state.bytes_sent == state.plan.bytes


def test_layers_called_by_keyword_are_captured(workers):
    assert workers(2)(called_by_keyword) == [True, True]


def confusing_names(rank):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 24, bias=False, dtype=torch.float64)
            self.module = nn.ModuleDict({"fc": nn.Linear(24, 24, bias=False, dtype=torch.float64)})
            self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
            self.extra = nn.Linear(24, 24, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module["fc"](self.fc(x)) + self.extra(x)

    torch.manual_seed(rank)
    model = Inner()
    x = torch.randn(4, 24, dtype=torch.float64)
    bounds = compress.rank_bounds(model, (x,), world_size=2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["extra.bias"])
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    (ddp(x).square().sum() * (rank + 1)).backward()
    return (
        sorted(state.plan),
        model.module["fc"].weight.grad.clone(),
        sorted(bounds),
        bounds["module.module.fc.weight"].rank,
    )


def test_a_submodule_called_module_frozen_and_ignored_parameters(workers):
    first, second = workers(2)(confusing_names)
    assert first[0] == ["extra.weight", "fc.weight", "module.fc.weight"]
    assert torch.equal(first[1], second[1])
    assert first[2] == ["extra.weight", "fc.weight", "frozen", "module.fc.weight"]
    assert first[3] == 8


def other_plan(rank):
    model = deep()
    bounds = bounds_of(model, 2)

    def wrap(rank_asked: int) -> compress.CompressionState:
        ddp = DistributedDataParallel(model)
        policy = {"kind": "fixed", "rank": rank_asked}
        state = compress.register(ddp, compressor="powersgd", policy=policy, bounds=bounds)
        loss_of(ddp, rank, 0).backward()
        return state

    saved = wrap(2).state_dict()
    try:
        wrap(4).load_state_dict(saved)
    except ValueError as error:
        return str(error)
    return "accepted"


def test_a_state_of_another_plan_is_refused(workers):
    for message in workers(2)(other_plan):
        assert "saved under another plan: 0.weight was powersgd of 2 columns" in message


def kept_rows(rank):
    """Rows that the capture of a discarded DDP object goes on collecting."""
    model = deep()
    bounds = bounds_of(model, 2)
    states = []
    for _ in range(2):
        ddp = DistributedDataParallel(model)
        states.append(compress.register(ddp, compressor="dad", bounds=bounds))
    for step in range(3):
        loss_of(ddp, rank, step).backward()
    return [len(state._capture._rows) for state in states]


def test_wrapping_anew_ends_the_old_capture(workers):
    assert workers(2)(kept_rows) == [[0, 0]] * 2


class TestPlan:
    def plan(self, compressor, policy="none", *, bottleneck=4, world_size=2, bounded=True):
        model = deep(bottleneck=bottleneck)
        bounds = bounds_of(model, world_size) if bounded else None
        return compress.make_plan(model, compressor, policy, bounds=bounds, world_size=world_size)

    def test_no_matrix_costs_more_than_dense(self):
        plan = self.plan("powersgd", {"kind": "fixed", "rank": 20})
        assert {assignment.method for assignment in plan.values()} == {"dense"}
        assert plan.bytes == plan.dense.bytes

    def test_below_the_bound_nothing_is_oversampled_and_nothing_certified(self):
        at = self.plan("powersgd", "bound")["0.weight"]
        below = self.plan("powersgd", {"kind": "bound", "offset": -1})["0.weight"]
        assert (at.rank, at.fit.columns, at.lossless) == (4, 8, True)
        assert (below.rank, below.fit.columns, below.lossless) == (3, 3, False)

    def test_without_bounds_nothing_low_rank_is_certified(self):
        plan = self.plan("powersgd", {"kind": "fixed", "rank": 4}, bounded=False)
        assert not plan["0.weight"].lossless

    def test_the_cheapest_candidate_on_the_wire_is_taken(self):
        both = self.plan(["powersgd", "dad"], "bound")
        assert both.wire_bytes <= min(self.plan("powersgd", "bound").wire_bytes, self.plan("dad").wire_bytes)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"compressor": "powersdg", "policy": "bound"}, "did you mean 'powersgd'"),
            ({"compressor": "powersgd"}, "needs a rank"),
            ({"compressor": "powersgd", "policy": {"kind": "fixed", "rank": 0}}, "rank: .*greater than or equal to 1"),
            ({"compressor": {"kind": "powersgd", "oversampling": 3}, "policy": "bound"}, r"oversample\)"),
            ({"compressor": "powersgd", "policy": "bound", "bounded": False}, "needs bounds"),
            ({"compressor": []}, "empty list"),
            ({"compressor": compress.FixedPolicy(rank=1)}, "must be a name, a mapping with a kind, or a Compressor"),
        ],
    )
    def test_mistakes_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            self.plan(**arguments)

    def test_bounds_of_another_network_are_refused(self):
        bounds = bounds_of(deep(width=16), 2)
        with pytest.raises(ValueError, match="another network"):
            compress.make_plan(deep(), "powersgd", "bound", bounds=bounds, world_size=2)

    def test_dad_declines_what_it_cannot_capture(self):
        info = ParameterInfo("conv.weight", (8, 3, 3, 3), torch.float32)
        assert isinstance(compress.DAD().fit(Sizing(info, None, None, 10)), Unfit)
        info = ParameterInfo("linear.weight", (64, 64), torch.bfloat16, linear="linear")
        assert isinstance(compress.DAD().fit(Sizing(info, None, None, 2)), Unfit)


def refusals(rank):
    model = deep()
    bounds = bounds_of(model, 3)
    messages = []
    ddp = DistributedDataParallel(model)
    for call in (
        lambda: compress.register(ddp, compressor="powersgd", policy="bound", bounds=bounds),
        lambda: compress.register(model, compressor="dense"),
        lambda: compress.register(ddp),
        lambda: compress.register(ddp, compress.make_plan(deep(width=16), "dense", world_size=2)),
        lambda: compress.register(ddp, compress.make_plan(deep(), "dense", world_size=4)),
        lambda: compress.register(ddp, "powersgd"),
        lambda: compress.register(ddp, compressor="dense", audit=50),
    ):
        try:
            call()
            messages.append("accepted")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_register_refuses_what_cannot_be_right(workers):
    words = [
        "world_size=3",
        "wrapped in DistributedDataParallel",
        "either a plan or",
        "another network",
        "world_size=4",
        "must come from make_plan",
        "{'every': 50}",
    ]
    for messages in workers(2)(refusals):
        assert [word in message for word, message in zip(words, messages, strict=True)] == [True] * len(words)


def wrapped_twice(rank):
    model = deep()
    bounds = bounds_of(model, 2)
    ddp = DistributedDataParallel(torch.compile(model, backend="eager"))
    state = compress.register(ddp, compressor="powersgd", policy="bound", bounds=bounds)
    loss_of(ddp, rank, 0).backward()
    return sorted(state.plan) == sorted(bounds), state.step


def test_prefixes_of_ddp_and_compile_are_stripped(workers):
    assert workers(2)(wrapped_twice) == [(True, 1)] * 2


class Sign(Compressor):
    """The method of docs/compressors.md."""

    kind: Literal["sign"] = "sign"

    def fit(self, sizing: Sizing) -> Fit:
        size = math.prod(sizing.matrix.shape)
        return Fit((Payload(AllReduceMean, size),), rank=min(sizing.matrix.matrix), lossless=False)

    def rounds(self, matrix: Matrix) -> Rounds:
        mean = yield AllReduceMean(matrix.gradients[matrix.info.name].sign())
        return {matrix.info.name: mean}


def sent_by_sign(rank):
    ddp = DistributedDataParallel(deep())
    compress.register(ddp, compressor=Sign())
    loss_of(ddp, rank, 0).backward()
    return grads(ddp)["0.weight"]


def test_a_method_of_ones_own_is_one_small_class(workers):
    first, second = workers(2)(sent_by_sign)
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) <= {-1.0, 0.0, 1.0}

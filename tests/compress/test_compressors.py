"""What PowerSGD and the state promise, and all methods on many buckets and after zero gradients."""

import pytest
import torch
from measured import gradients
from measured import rank as rank_of
from nets import bounds_of, deep, grads, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress


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

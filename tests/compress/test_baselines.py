"""The methods to compare with: casts, top-k, and the optimal truncation; PyTorch's PowerSGD beside the latter."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from nets import bounds_of, deep, grads, loss_of, true_mean
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import compress

WORKERS = 2
LOW = {"kind": "fixed", "rank": 1}
TOPK = {"kind": "topk", "share": 0.05}


def with_vectors(dtype=torch.float64):
    """Matrices, biases, and a convolution."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Linear(24, 32), nn.Tanh(), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 20)
    )
    return net.to(dtype)


def whole_plan(ddp, spec):
    """A plan that sends all matrices by one method, though dense be cheaper."""
    compressor, plan = compress.make_compressor(spec), compress.make_plan(ddp, "dense", world_size=WORKERS)
    sizing = compress.compressors.base.Sizing
    forced = {
        name: replace(a, compressor=compressor, fit=compressor.fit(sizing(a.info, None, None, None)))
        for name, a in plan.items()
        if a.info.is_matrix
    }
    return replace(plan, assignments={**plan.assignments, **forced})


def deviation(rank, make, spec, policy, dtype):
    """Largest relative deviation of what three steps deliver from the mean; methods; the gradients."""
    model, twin = make(dtype=dtype), make(dtype=dtype)
    bounds = bounds_of(model, WORKERS, dtype) if policy == "bound" else None
    ddp = DistributedDataParallel(model)
    options = {"plan": whole_plan(ddp, spec)} if policy is None else {"compressor": spec, "policy": policy}
    state = compress.register(ddp, **options, bounds=bounds)
    worst = 0.0
    for step in range(3):
        ddp.zero_grad()
        loss_of(ddp, rank, step, dtype).backward()
        true = true_mean(twin, step, dtype)
        worst = max(worst, *(float((g - true[n]).norm() / true[n].norm()) for n, g in grads(ddp).items()))
    return worst, {a.method for a in state.plan.matrices}, grads(ddp)


@pytest.mark.parametrize(
    ("make", "spec", "policy", "dtype", "limit"),
    [
        (deep, "svd", "bound", torch.float64, 1e-11),
        (deep, "svd", "bound", torch.float32, 1e-5),
        (with_vectors, {"kind": "topk", "share": 1.0}, None, torch.float64, 1e-14),
        (with_vectors, {"kind": "topk", "entries": 10**6}, None, torch.float32, 1e-6),
        (with_vectors, "bf16", "none", torch.float32, 2**-7),
        (with_vectors, "fp16", "none", torch.float64, 2**-10),
    ],
    ids=["svd-64", "svd-32", "topk-64", "topk-32", "bf16", "fp16"],
)
def test_what_is_sent_whole_is_delivered(workers, make, spec, policy, dtype, limit):
    results = workers(WORKERS)(deviation, make, spec, policy, dtype)
    for worst, methods, _ in results:
        assert worst < limit
        assert methods == {spec if isinstance(spec, str) else spec["kind"]}
    first, second = (found for _, _, found in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def beside_pytorchs_hook(rank, kind, hook):
    ours, theirs = (DistributedDataParallel(with_vectors(torch.float32)) for _ in range(2))
    compress.register(ours, compressor=kind)

    def unnamed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        return hook(None, bucket)  # DDP knows the bfloat16 hook by its name, and refuses it on gloo

    theirs.register_comm_hook(None, unnamed)
    for ddp in (ours, theirs):
        loss_of(ddp, rank, 0, torch.float32).backward()
    return grads(ours), grads(theirs)


@pytest.mark.parametrize(
    ("kind", "hook"), [("fp16", default_hooks.fp16_compress_hook), ("bf16", default_hooks.bf16_compress_hook)]
)
def test_casts_are_pytorchs_bit_for_bit_vectors_included(workers, kind, hook):
    for ours, theirs in workers(WORKERS)(beside_pytorchs_hook, kind, hook):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def out_of_range(rank, kind):
    ddp = DistributedDataParallel(nn.Linear(4, 3))
    state = compress.register(ddp, compressor=kind)
    counts = []
    for size in (1.0, 1e6, 1.0):
        ddp.zero_grad()
        (size * ddp(torch.ones(1, 4))).sum().backward()
        counts.append((state.finite, state.nonfinite_steps))
    return counts


@pytest.mark.parametrize(("kind", "lost"), [("fp16", 1), ("bf16", 0)])
def test_numbers_beyond_float16_make_a_step_count_as_lost(workers, kind, lost):
    for counts in workers(WORKERS)(out_of_range, kind):
        assert counts == [(True, 0), (not lost, lost), (True, lost)]


def sent(rank, spec, policy, dtype):
    ddp = DistributedDataParallel(with_vectors(dtype))
    state = compress.register(ddp, compressor=spec, policy=policy)
    for step in range(3):
        loss_of(ddp, rank, step, dtype).backward()
    exchange, plan = state.exchange, state.plan
    return exchange.bytes / 3, plan.bytes, exchange.wire_bytes / 3, plan.wire_bytes, plan.dense.bytes


@pytest.mark.parametrize(
    ("spec", "policy", "dtype", "share"),
    [
        ("fp16", "none", torch.float32, 0.5),
        ("bf16", "none", torch.float64, 0.25),
        ("fp16", "none", torch.bfloat16, 1.0),  # is of 16 bits already
        (TOPK, "none", torch.float32, None),
        (TOPK, "none", torch.float64, None),
        (TOPK, "none", torch.bfloat16, None),
        ("svd", LOW, torch.float64, 1.0),
    ],
)
def test_planned_bytes_are_counted(workers, spec, policy, dtype, share):
    for counted, planned, wire, planned_wire, dense in workers(WORKERS)(sent, spec, policy, dtype):
        assert counted == planned
        assert wire == planned_wire
        if share is None:
            sizes = [(32 * 24, 6 * 18, 20 * 24), (32, 6, 20)]
            chosen = sum(math.ceil(0.05 * size) for size in sizes[0])
            assert planned == chosen * (dtype.itemsize + 4) + sum(sizes[1]) * dtype.itemsize
        else:
            assert planned == share * dense


def sums(rank, world_size, spec, policy, dtype, scales):
    """Sum over steps of what was delivered and of true means, and the mean residual, for all matrices."""
    model, twin = deep(dtype=dtype), deep(dtype=dtype)
    ddp = DistributedDataParallel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=scales[0], enabled=len(set(scales)) > 1)
    state = compress.register(ddp, compressor=spec, policy=policy, grad_scaler=scaler)
    zeros = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    delivered, true, last = dict(zeros), dict(zeros), {}
    for step, scale in enumerate(scales):
        if scaler.is_enabled():
            scaler.scale(torch.ones(()))  # the first call makes its scale
            scaler.update(scale)
        ddp.zero_grad()
        scaler.scale(loss_of(ddp, rank, step, dtype)).backward()
        last, means = grads(ddp), true_mean(twin, step, dtype, world_size)
        delivered = {name: total + last[name].double() / scale for name, total in delivered.items()}
        true = {name: total + means[name].double() for name, total in true.items()}
    owed = {}
    for name, memory in state.state_dict()["memories"].items():
        owed[name] = memory["residual"].double() / world_size
        dist.all_reduce(owed[name])
    return delivered, true, owed, last


@pytest.mark.parametrize("scales", [[1.0] * 6, [4.0, 4.0, 0.5, 64.0, 64.0, 2.0]], ids=["plain", "scaled"])
@pytest.mark.parametrize(("spec", "policy"), [(TOPK, "none"), ("svd", LOW)], ids=["topk", "svd"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.bfloat16, 0.03)], ids=["64", "bf16"])
def test_error_feedback_loses_nothing_for_good(workers, spec, policy, scales, dtype, limit):
    results = workers(3)(sums, 3, spec, policy, dtype, scales)
    for delivered, true, owed, _ in results:
        for name in true:
            size = true[name].norm()
            assert (delivered[name] - true[name]).norm() > 0.05 * size
            assert (delivered[name] + owed[name] - true[name]).norm() < limit * size
    assert all(torch.equal(results[0][3][n], other[3][n]) for other in results[1:] for n in results[0][3])


def largest_entries(rank):
    ddp = DistributedDataParallel(nn.Linear(8, 4, bias=False, dtype=torch.float64))
    state = compress.register(ddp, compressor={"kind": "topk", "entries": 3})
    generator = torch.Generator().manual_seed(rank)
    own = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    (ddp(torch.eye(8, dtype=torch.float64)) * own.mT).sum().backward()
    return own, grads(ddp)["weight"], state.state_dict()["memories"]["weight"]["residual"]


def test_topk_sends_each_workers_largest_entries(workers):
    results = workers(WORKERS)(largest_entries)
    expected = torch.zeros(4, 8, dtype=torch.float64)
    for own, _, residual in results:
        smallest = own.abs().flatten().sort(descending=True).values[2]
        large = torch.where(own.abs() >= smallest, own, 0)
        expected += large / WORKERS
        assert torch.allclose(residual, own - large, atol=1e-15)
    for _, delivered, _ in results:
        assert torch.allclose(delivered, expected, atol=1e-15)


def spoiled(rank, spec, policy, value):
    """Steps of which the third holds NaN or infinity on one worker; and the same without that step."""
    found = []
    for spoil in (True, False):
        ddp = DistributedDataParallel(deep())
        state = compress.register(ddp, compressor=spec, policy=policy)
        for step in range(5):
            if step == 2 and not spoil:
                continue
            ddp.zero_grad()
            loss = loss_of(ddp, rank, step)
            (loss * (value if step == 2 and rank == 1 else 1.0)).backward()
        found.append((grads(ddp), state.nonfinite_steps))
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("spec", "policy"), [(TOPK, "none"), ("svd", LOW)], ids=["topk", "svd"])
def test_a_step_that_is_not_finite_leaves_no_trace(workers, spec, policy, value):
    for (with_it, lost), (without, none) in workers(WORKERS)(spoiled, spec, policy, value):
        assert (lost, none) == (1, 0)
        assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def audited(rank, spec, at_rank):
    """Compression errors by name, of the first step that is compressed; the same batch in all steps."""
    ddp = DistributedDataParallel(deep(width=40, bottleneck=12))
    state = compress.register(ddp, compressor=spec, policy={"kind": "fixed", "rank": at_rank}, audit={"every": 1})
    compressed = 2 if spec == "torch_powersgd" else 0
    for _ in range(compressed + 1):
        ddp.zero_grad()
        loss_of(ddp, rank, 0).backward()
    return {row.name: row for row in state.audit_rows() if row.step == compressed}


@pytest.mark.parametrize("at_rank", [1, 4])
def test_no_method_beats_the_optimal_truncation_at_its_rank(workers, at_rank):
    best = workers(WORKERS)(audited, "svd", at_rank)[0]
    for row in best.values():
        unavoidable = torch.tensor(row.singular_values[at_rank:]).norm() / torch.tensor(row.singular_values).norm()
        assert row.compression_error == pytest.approx(float(unavoidable), rel=1e-6)
        assert row.compression_error > 0.01
    for spec in ("powersgd", {"kind": "powersgd", "iterations": 3}, "torch_powersgd"):
        rows = workers(WORKERS)(audited, spec, at_rank)[0]
        assert rows.keys() == best.keys()
        for name, row in rows.items():
            assert row.method == "dense" or row.compression_error > (1 - 1e-12) * best[name].compression_error
        assert any(row.method != "dense" for row in rows.values())


def test_the_yardstick_is_not_thrown_out_for_its_bytes_and_topk_is():
    methods = {a.method for a in compress.make_plan(deep(), "svd", LOW, world_size=2).matrices}
    assert methods == {"svd"}
    many = compress.make_plan(deep(), {"kind": "topk", "share": 0.1}, world_size=16)
    assert {a.method for a in many.matrices} == {"dense"}  # every worker gets every other's entries


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"share": 0.1, "entries": 3}, "entries is 3 and share is 0.1; give one of them"),
        ({"share": 0.0}, "share: Input should be greater than 0"),
    ],
)
def test_topk_refuses_what_says_not_how_many(settings, told):
    with pytest.raises(ValueError, match=told):
        compress.make_plan(deep(), {"kind": "topk", **settings}, world_size=2)

"""PyTorch's own PowerSGD hook, as a compressor."""

import gc
import os
import time

import pytest
import torch
import torch.distributed as dist
from nets import deep, grads, loss_of, true_mean
from torch.nn.parallel import DistributedDataParallel

import compress
from compress import peer

WORKERS = 2
LOW = {"kind": "fixed", "rank": 1}


def peer_steps(rank, steps, width, bucket_mb, at_rank, spec):
    """Deviation from the mean in each step; buckets; bytes: counted, truly handed over, planned and dense."""
    model, twin = deep(width, 4, 6), deep(width, 4, 6)
    ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_mb)
    plan = compress.make_plan(ddp, spec, {"kind": "fixed", "rank": at_rank}, world_size=WORKERS)
    state = compress.register(ddp, plan, audit={"every": 2})
    buckets, handed, deviations, counted = set(), [0], [], []
    original, all_reduce, gather = state.on_bucket, dist.all_reduce, dist.all_gather_single

    def watched(bucket):
        buckets.add(bucket.index())

        def spy(tensor, *args, **kwargs):
            handed[0] += tensor.numel() * tensor.element_size()
            return all_reduce(tensor, *args, **kwargs)

        def spy_on_audits(output, tensor, *args, **kwargs):
            handed[0] += tensor.numel() * tensor.element_size()
            return gather(output, tensor, *args, **kwargs)

        dist.all_reduce, dist.all_gather_single = spy, spy_on_audits
        try:
            return original(bucket)
        finally:
            dist.all_reduce, dist.all_gather_single = all_reduce, gather

    state.on_bucket = watched
    for step in range(steps):
        before, handed[0], audits = state.bytes_sent, 0, state.auditor.exchange.bytes
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
        true = true_mean(twin, step)
        error = sum(float((g - true[n]).square().sum()) for n, g in grads(ddp).items()) ** 0.5
        deviations.append(error / sum(float(g.square().sum()) for g in true.values()) ** 0.5)
        counted.append((state.bytes_sent - before, handed[0] - (state.auditor.exchange.bytes - audits)))
    return deviations, len(buckets), counted, (plan.bytes, plan.dense.bytes), grads(ddp), state.audit_rows()


@pytest.mark.parametrize("spec", ["torch_powersgd", {"kind": "torch_powersgd", "warm_start": False, "start_step": 3}])
def test_pytorchs_powersgd_ends_on_many_buckets_and_its_bytes_are_counted(workers, spec):
    start = 2 if isinstance(spec, str) else 3
    results = workers(WORKERS)(peer_steps, 20, 48, 0.01, 2, spec, timeout_s=30)
    for deviations, buckets, counted, (planned, dense), _, _ in results:
        assert buckets >= 4
        assert counted == [(dense, dense)] * start + [(planned, planned)] * (20 - start)
        assert max(deviations[:start]) < 1e-14
        assert min(deviations[start:]) > 0.01
    audits = results[0][-1]
    assert {row.step for row in audits} == set(range(0, 20, 2))
    later = [row for row in audits if row.step > start and row.compressed]
    assert all(0 < row.compression_error < 1 and row.communicated_rank == 2 for row in later)
    assert all(row.input_norm != row.gradient_norm for row in later if row.step > start + 1)  # the residual is known
    first, second = (result[4] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pytorchs_powersgd_at_full_rank_delivers_the_mean(workers):
    spec = {"kind": "torch_powersgd", "warm_start": False}  # from last step's Q it need not be exact
    for deviations, _, counted, (planned, dense), _, _ in workers(WORKERS)(peer_steps, 6, 48, 25, 8, spec):
        assert counted[-1] == (planned, planned)
        assert planned < dense
        assert max(deviations) < 1e-11


def peer_sums(rank, stop, bucket_mb):
    """Delivered and true sums and mean residual; the state loaded after `stop` steps into a DDP object afresh."""
    model, twin = deep(width=40), deep(width=40)

    def wrap():
        ddp = DistributedDataParallel(model, bucket_cap_mb=bucket_mb)
        return ddp, compress.register(ddp, compressor="torch_powersgd", policy=LOW)

    ddp, state = wrap()
    delivered, true = 0.0, 0.0
    for step in range(9):
        if step == stop:
            saved = state.state_dict()
            ddp, state = wrap()
            state.load_state_dict(saved)
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
        delivered, true = delivered + grads(ddp)["0.weight"], true + true_mean(twin, step)["0.weight"]
    residual = state.state_dict()["memories"]["0.weight"]["residual"]
    dist.all_reduce(residual)
    return delivered, true, residual / WORKERS, state.step


@pytest.mark.parametrize(("stop", "bucket_mb"), [(None, 0.01), (5, 0.01), (5, 25)])
def test_what_pytorchs_powersgd_keeps_is_saved_and_sent(workers, stop, bucket_mb):
    for delivered, true, residual, steps in workers(WORKERS)(peer_sums, stop, bucket_mb):
        assert steps == 9
        assert (delivered - true).norm() > 0.05 * true.norm()
        assert torch.allclose(delivered + residual, true, atol=1e-12)


def peer_trains(rank):
    ddp = DistributedDataParallel(deep(width=32, dtype=torch.float32))
    state = compress.register(ddp, compressor="torch_powersgd", policy={"kind": "fixed", "rank": 2})
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1.0)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_of(ddp, rank, 0, torch.float32)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses[0], losses[-1], state.nonfinite_steps


def test_pytorchs_powersgd_trains(workers):
    for first, last, lost in workers(WORKERS)(peer_trains):
        assert last < 0.8 * first
        assert lost == 0


def peer_ends(rank):
    """Callbacks of the last step end after the group has been destroyed."""
    hook = peer.powerSGD_hook

    def slow(state, bucket):
        group, future = dist.group.WORLD, hook(state, bucket)
        future.then(lambda _: (time.sleep(0.3), group))
        return future

    peer.powerSGD_hook = slow
    try:
        ddp = DistributedDataParallel(deep(width=40))
        compress.register(ddp, compressor="torch_powersgd", policy=LOW)
        loss_of(ddp, rank, 0).backward()
    finally:
        peer.powerSGD_hook = hook
        del ddp
        gc.collect()
    return os.getpid()


def test_a_group_outlives_the_callbacks_of_pytorchs_powersgd(workers):
    seen = set()
    for _ in range(3):  # of the first group in a process torch itself keeps a reference for ever
        seen.add(tuple(workers(WORKERS)(peer_ends)))
        time.sleep(0.8)  # callbacks end meanwhile, and with them the process, if they are the last to know the group
    assert len(seen) == 1


def refusals(rank):
    ddp = DistributedDataParallel(deep(width=40))
    state = compress.register(ddp, compressor="torch_powersgd", policy=LOW)
    scaled, strided = DistributedDataParallel(deep(width=40)), deep(width=40)
    strided[0].weight.data = strided[0].weight.data.mT
    tries = [
        lambda: state.change_plan(state.plan.dense),
        lambda: compress.register(scaled, state.plan, grad_scaler=torch.amp.GradScaler("cpu")),
        lambda: compress.register(DistributedDataParallel(strided), state.plan),
    ]
    messages = []
    for attempt in tries:
        with pytest.raises(ValueError, match=r"\w") as caught:
            attempt()
        messages.append(str(caught.value))
    return messages


def test_what_pytorchs_powersgd_cannot_do_is_refused(workers):
    for change, scaler, strides in workers(WORKERS)(refusals):
        assert "wrap the model anew" in change
        assert "GradScaler" in scaler
        assert "0.weight has shape (40, 40) and strides (1, 40)" in strides
    for compressor, policy, local_size, told in [
        (["powersgd", "torch_powersgd"], LOW, 1, "are torch_powersgd, powersgd; give it alone"),
        ("torch_powersgd", "none", 1, "needs a rank"),
        ("torch_powersgd", "bound", 1, "one rank for all matrices, which policy 'bound' does not give"),
        ("torch_powersgd", LOW, 2, "leave out local_group"),
        ({"kind": "torch_powersgd", "start_step": 1}, LOW, 1, "start_step: Input should be greater than or equal to 2"),
    ]:
        with pytest.raises(ValueError, match=told):
            compress.make_plan(deep(width=40), compressor, policy, world_size=2, local_size=local_size)

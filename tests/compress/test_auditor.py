"""What the auditor does besides measuring: splits losses, looks at layers, raises alarms, tells policies."""

import copy
import logging
from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from nets import deep, grads, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress import Decision, Policy, Situation
from compress.audit.step import share_out

WORKERS = 2
LOW = {"kind": "fixed", "rank": 2}


def split(rank, policy, iterations):
    """Rows of the third step, and M and Ĝ of one matrix in it, found by other means."""
    import torch.distributed as dist

    ddp = DistributedDataParallel(deep())
    method = {"kind": "powersgd", "iterations": iterations}
    state = compress.register(ddp, compressor=method, policy=policy, audit={"every": 1})
    for step in range(3):
        if step == 2:
            kept = state.state_dict()["memories"]["0.weight"]["residual"]
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
    twin = copy.deepcopy(ddp.module)
    twin.zero_grad()
    loss_of(twin, rank, 2).backward()
    M = twin[0].weight.grad + kept
    dist.all_reduce(M)
    return [row for row in state.audit_rows() if row.step == 2], M / WORKERS, ddp.module[0].weight.grad


def test_the_loss_is_split_into_what_the_rank_costs_and_what_iterating_lost(workers):
    errors = []
    for iterations in (1, 6):
        rows, M, delivered = workers(WORKERS)(split, LOW, iterations)[0]
        row = next(row for row in rows if row.name == "0.weight")
        values = torch.linalg.svdvals(M)
        assert row.unavoidable_error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-9)
        assert row.compression_error == pytest.approx(float((M - delivered).norm() / M.norm()), rel=1e-9)
        assert row.iteration_error**2 + row.unavoidable_error**2 == pytest.approx(row.compression_error**2)
        assert row.input_singular_values == pytest.approx(values.tolist())
        errors.append(row.iteration_error)
    assert errors[0] > 0.01 > errors[1]  # iterating more loses less, and what the rank costs stays
    together = compress.audited_loss(rows)
    assert together.unavoidable_error**2 + together.iteration_error**2 == pytest.approx(together.compression_error**2)


def factors(rank, kind, activations):
    torch.manual_seed(0)
    if kind == "linear":
        network: nn.Module = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 3), nn.Linear(3, 20))
        x = torch.randn(12, 20, generator=torch.Generator().manual_seed(rank))
    else:
        network = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten())
        x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(rank))
    ddp = DistributedDataParallel(network)
    state = compress.register(ddp, compressor="dense", audit={"every": 2, "activations": activations})
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for _ in range(4):
        optimizer.zero_grad()
        ddp(x).square().mean().backward()
        optimizer.step()
    return state.audit_rows(), [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_ranks_of_inputs_and_adjoints(workers, kind):
    seen, blind = workers(WORKERS)(factors, kind, True), workers(WORKERS)(factors, kind, False)
    for (_, with_ranks), (_, without) in zip(seen, blind, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(with_ranks, without, strict=True))
    rows = seen[0][0]
    assert [row.step for row in rows][:: len(rows) // 2] == [0, 2]
    found = [(row.input_rank, row.adjoint_rank) for row in rows if row.step == 2]
    # 12 rows, a bottleneck of 3 and a bias; patches of 2 · 9 entries, and 6 · 9 from maps of 36 and 16 positions.
    assert found == ([(12, 3), (12, 3), (3, 4)] if kind == "linear" else [(18, 6), (48, 4)])
    assert all(row.input_rank is row.adjoint_rank is None for row in blind[0][0])


def planted(rank, what, on_violation, sees):
    """Bounds that do not hold: of another bottleneck, or with a weight that is not shared."""
    network, other = deep(bottleneck=4), deep(bottleneck=2)
    example = torch.randn(16, 24, dtype=torch.float64)
    bounded = other if what == "wrong bound" else network
    bounds = compress.rank_bounds(bounded, (example,), loss=lambda y: y.square().mean(), world_size=WORKERS)
    if what == "wrong bound":
        entries = {name: compress.RankBound(bounds[name].rank, (24, 24), "of another", 2) for name in ("0.weight",)}
        rest = compress.rank_bounds(network, (example,), loss=lambda y: y.square().mean(), world_size=WORKERS)
        bounds = compress.Bounds({**{name: rest[name] for name in rest}, **entries}, (), WORKERS, 1, True)
    ddp = DistributedDataParallel(network)
    if what == "weight not shared" and rank == 1:
        with torch.no_grad():
            network[2].weight.add_(torch.randn_like(network[2].weight))
    told: list[list[compress.AuditRow]] = []
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("compress.audit.violations")
    logger.addHandler(handler)
    state = compress.register(
        ddp,
        compressor="dense",
        bounds=bounds,
        audit={"every": 1, "on_violation": on_violation},
        on_audit=told.append if sees else None,
    )
    try:
        for step in range(3):
            loss_of(ddp, rank, step).backward()
    except compress.BrokenBoundError as error:
        return [str(error)], [row.name for row in error.rows], state.bound_violations, len(told)
    finally:
        logger.removeHandler(handler)
    return logged, sorted({row.name for row in state.audit_rows() if row.violated}), state.bound_violations, len(told)


@pytest.mark.parametrize(("what", "where"), [("wrong bound", "0.weight"), ("weight not shared", "1.weight")])
def test_a_broken_bound_is_an_alarm(workers, what, where):
    (logged, names, count, told), (elsewhere, _, same, also) = workers(WORKERS)(planted, what, "warn", True)
    assert where in names
    assert count == same == 3 * len(names)
    assert told == also == 3
    (message,) = [text for text in logged if f"gradient of {where} (24 × 24) has measured rank" in text]  # once a layer
    assert "σ_1 = " in message
    assert "tolerance is " in message
    assert elsewhere == []


def test_a_broken_bound_can_end_training(workers):
    for (message,), names, count, _ in workers(WORKERS)(planted, "wrong bound", "fail", False):
        assert names == ["0.weight"]
        assert count == 1
        assert "above its bound 2" in message


class Halving(Policy):
    """Half the rank after each audit, down to 1."""

    adaptive = True
    kind: Literal["halving"] = "halving"

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        seen = {name: len(observations) for name, observations in situation.observed.items()}
        return {
            matrix.name: Decision(max(1, 16 >> seen.get(matrix.name, 0)), f"after {seen.get(matrix.name, 0)} audits")
            for matrix in situation.matrices
        }


def adapting(rank, audit):
    ddp = DistributedDataParallel(deep(width=40, bottleneck=40))
    state = compress.register(ddp, compressor="powersgd", policy=Halving(), audit=audit)
    ranks, delivered = [], []
    for step in range(7):
        ranks.append(state.plan["0.weight"].rank)
        before = state.bytes_sent
        ddp.zero_grad()
        planned = state.plan.bytes
        loss_of(ddp, rank, step).backward()
        assert state.bytes_sent - before == planned
        delivered.append(grads(ddp))
    return ranks, delivered, [row.communicated_rank for row in state.audit_rows() if row.name == "0.weight"]


def test_a_policy_follows_audits_alike_on_all_workers(workers):
    (ranks, delivered, audited), (same, also, nothing) = workers(WORKERS)(adapting, {"every": 2})
    assert ranks == same == [16, 8, 8, 4, 4, 2, 2]
    assert audited == [16, 8, 4, 2]
    assert nothing == []  # rows are kept on rank 0
    for first, second in zip(delivered, also, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_audits_between_check_what_was_decided(workers):
    ranks, _, audited = workers(WORKERS)(adapting, {"every": 1, "revise_every": 3})[0]
    assert ranks == audited == [16, 8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize("settings", [{"every": 0, "revise_every": 3}, {"every": 2, "revise_every": 3}])
def test_policies_can_see_only_what_is_audited(settings):
    with pytest.raises(ValueError, match="give a multiple of it"):
        compress.AuditSettings(**settings)


def truncated(rank):
    ddp = DistributedDataParallel(deep(width=40, bottleneck=40))
    state = compress.register(ddp, compressor="svd", policy={"kind": "oracle", "tolerance": 0.3}, audit={"every": 1})
    for step in range(3):
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
    return state.audit_rows()


def test_an_oracle_is_audited_at_the_rank_of_the_step(workers):
    rows = workers(WORKERS)(truncated)[0]
    for row in rows:
        energies = torch.tensor(row.input_singular_values).square()
        tails = [float((energies[r:].sum() / energies.sum()).sqrt()) for r in range(41)]
        assert row.communicated_rank == next(r for r, tail in enumerate(tails) if tail <= 0.3)
        assert row.compression_error == pytest.approx(tails[row.communicated_rank])
        assert row.iteration_error == pytest.approx(0, abs=1e-6)
    assert len({row.communicated_rank for row in rows}) > 1


def test_matrices_are_shared_out_by_cost():
    shapes = {
        name: torch.Size(shape) for name, shape in {"a": (8, 8), "b": (64, 64), "c": (32, 64), "d": (32, 32)}.items()
    }
    shares = share_out(shapes, 2)
    assert shares == [["b"], ["c", "d", "a"]]
    assert share_out(shapes, 6)[4:] == [[], []]


def audited_long(rank, sees):
    """The steps whose rows are kept of five, with room for two; those that were told, and the warnings."""
    network = deep()
    ddp = DistributedDataParallel(network)
    told: list[int] = []
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logger = logging.getLogger("compress.audit.auditor")
    logger.addHandler(handler)
    note = (lambda rows: told.append(rows[0].step)) if sees else None
    state = compress.register(ddp, compressor="dense", audit={"every": 1, "keep": 2}, on_audit=note)
    try:
        for step in range(5):
            loss_of(ddp, rank, step).backward()
    finally:
        logger.removeHandler(handler)
    return [row.step for row in state.audit_rows() if row.name == "0.weight"], told, logged


@pytest.mark.parametrize("sees", [False, True])
def test_rows_of_old_audits_are_dropped_and_that_is_told_once_to_who_does_not_see_them(workers, sees):
    first, second = workers(WORKERS)(audited_long, sees)
    assert first[0] == [3, 4]
    assert second[0] == []
    assert first[1] == second[1] == ([0, 1, 2, 3, 4] if sees else [])
    assert len(first[2]) == (0 if sees else 1)
    assert second[2] == []
    assert sees or "more than 2 steps were audited" in first[2][0]

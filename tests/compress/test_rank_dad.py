"""rank-dAD: r factors of each worker's gradient, against the truncated SVD, and the failures of others."""

import pytest
import torch
from capturable import NETS, all_bounds, bounds_of, delivered, loss_of, network
from measured import rank as rank_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.base import Sizing
from compress.compressors.subspace_iteration import subspace_iteration
from compress.layers import ParameterInfo


def matrix(values: torch.Tensor, m: int = 96, n: int = 80) -> torch.Tensor:
    """A random matrix of these singular values."""
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64))
    return (left * values.double()) @ right.mT


def approximated(G: torch.Tensor, rank: int, iterations: int, tolerance: float = 0.0) -> tuple[torch.Tensor, int]:
    """The approximation, and the iterations it took."""
    calls = []

    def forward(V: torch.Tensor) -> torch.Tensor:
        calls.append(V)
        return G @ V

    start = torch.randn(G.shape[1], min(rank + 4, *G.shape), generator=torch.Generator().manual_seed(1)).to(G.dtype)
    U, V = subspace_iteration(forward, lambda U: G.mT @ U, start, rank, iterations, tolerance)
    return U @ V.mT, len(calls)


class TestSubspaceIteration:
    @pytest.mark.parametrize("rank", [1, 3, 7, 15, 16])
    @pytest.mark.parametrize(
        ("values", "iterations", "slack"),
        [
            (torch.ones(16), 1, 1e-12),  # the paper's deflation: relative errors of 0.98, 2.15 and 6.3 here
            (0.8 ** torch.arange(64), 4, 1e-3),
            (1 / (1 + torch.arange(64)), 4, 1e-2),
        ],
        ids=["flat", "geometric", "harmonic"],
    )
    def test_it_is_as_near_as_the_truncated_svd(self, values, rank, iterations, slack):
        G = matrix(values)
        found, _ = approximated(G, rank, iterations)
        best = values[rank:].double().norm()
        assert (G - found).norm() <= (1 + slack) * best + 1e-12 * G.norm()
        assert rank_of(found) == rank  # and no factor less

    def test_more_iterations_bring_it_nearer(self):
        G = matrix(0.9 ** torch.arange(64))
        errors = [float((G - approximated(G, 4, iterations)[0]).norm()) for iterations in (1, 2, 4, 8)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 1.02 * errors[-1]

    def test_theta_stops_it_where_more_would_gain_little(self):
        steep, flat = matrix(0.1 ** torch.arange(8)), matrix(torch.ones(8))
        assert approximated(steep, 2, 50, 1e-3)[1] == approximated(flat, 2, 50, 1e-3)[1] == 2
        assert approximated(matrix(0.97 ** torch.arange(64)), 2, 50, 1e-3)[1] > 2
        assert approximated(steep, 2, 5)[1] == 5

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_not_finite_stays_so(self, value):
        G = matrix(torch.ones(8))
        G[3, 4] = value
        assert not approximated(G, 2, 4)[0].isfinite().all()

    def test_zero_stays_zero(self):
        assert torch.equal(approximated(torch.zeros(9, 7), 2, 4, 1e-3)[0], torch.zeros(9, 7))


def truncated(rank, bounds, names, cap, dtype, world_size):
    """For each network: deviation from the mean of truncated SVDs, how far those are, of biases, and the ranks."""
    results = {}
    for name in names:
        register = {
            "compressor": {"kind": "rank_dad", "iterations": 12, "tolerance": 0.0},
            "policy": {"kind": "fixed", "rank": cap},
        }
        rows = [(1,) * world_size]
        found = delivered(rank, bounds[name], name, register, rows=rows, dtype=dtype)
        workers_own = []
        for worker in range(world_size):
            model = network(name, dtype)
            loss_of(model, name, worker, 1, dtype).backward()
            workers_own.append({key: parameter.grad for key, parameter in model.named_parameters()})
        for key, assignment in found["state"].plan.items():
            own = [
                gradients[key].flatten(1) if gradients[key].dim() > 1 else gradients[key] for gradients in workers_own
            ]
            if assignment.method == "rank_dad" and assignment.info.is_matrix:
                parts = [torch.linalg.svd(G, full_matrices=False) for G in own]
                own = [(U[:, :cap] * S[:cap]) @ V[:cap] for U, S, V in parts]
            expected = sum(own) / world_size
            gradient = found["gradients"][key].view_as(expected)
            error = float((gradient - expected).norm() / expected.norm())
            method = "bias" if not assignment.info.is_matrix else assignment.method
            results[f"{name} {key}"] = method, error, rank_of(gradient) if method == "rank_dad" else 0, assignment.rank
        results[f"{name} bytes"] = "bytes", float(abs(found["sent"] - found["planned"])), 0, 0
    return results


@pytest.mark.parametrize(("world_size", "cap"), [(1, 1), (2, 3), (3, 1)])
def test_each_worker_sends_its_truncated_svd(workers, world_size, cap):
    bounds = all_bounds(world_size)
    for results in workers(world_size)(truncated, bounds, list(NETS), cap, torch.float64, world_size):
        assert {key: found[:2] for key, found in results.items() if found[1] > 1e-2} == {}
        exact = [error for method, error, *_ in results.values() if method != "rank_dad"]
        assert max(exact) < 1e-11  # biases among them: the peers' are wrong
        ranks = [(found, planned) for method, _, found, planned in results.values() if method == "rank_dad"]
        assert len(ranks) >= 15
        assert all(found <= planned <= cap * world_size for found, planned in ranks)
        assert max(found for found, _ in ranks) == cap * world_size  # a cap of 1 works, and of r gives r
        if world_size == 1:
            assert {found for found, _ in ranks} == {cap}


WIDTH, BATCH = 48, 24


def bottleneck(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    widths = [WIDTH, WIDTH, 4, WIDTH, WIDTH]
    return nn.Sequential(*(nn.Linear(a, b, dtype=dtype) for a, b in zip(widths, widths[1:], strict=False)))


def at_the_bound(rank, dtype, spoil):
    """Deviations at the bound, the audit's first rows, and what is delivered once a worker has a NaN."""
    model, twin = bottleneck(dtype), bottleneck(dtype)

    def loss(module: nn.Module, worker: int) -> torch.Tensor:
        x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(worker), dtype=torch.float64).to(dtype)
        return module(x).square().mean()

    example = torch.randn(BATCH, WIDTH, dtype=dtype)
    bounds = compress.rank_bounds(model, (example,), loss=lambda y: y.square().mean(), world_size=2)
    wrapped = DistributedDataParallel(model)
    state = compress.register(wrapped, compressor="rank_dad", policy="bound", bounds=bounds, audit={"every": 1})
    loss(wrapped, rank).backward()
    for worker in range(2):
        (loss(twin, worker) / 2).backward()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    error = max(float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) for ours, theirs in pairs)
    planned = state.plan["0.weight"]
    audits = [
        (row.bound, row.measured_rank, row.information_loss) for row in state.audit_rows() if row.name == "0.weight"
    ]
    wrapped.zero_grad()
    (loss(wrapped, rank) * (float("nan") if rank == spoil else 1.0)).backward()
    spoiled = [bool(parameter.grad.isfinite().any()) for parameter in model.parameters()]
    return error, (planned.method, planned.lossless, planned.rank), audits, spoiled


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_at_the_bound_it_is_lossless_and_what_is_not_finite_reaches_everyone(workers, dtype, limit):
    first, second = workers(2)(at_the_bound, dtype, 1)
    for error, planned, _, spoiled in (first, second):
        assert error < limit
        assert planned == ("rank_dad", True, 4)
        assert spoiled == [False] * 8
    ((bound, measured, loss),) = first[2]  # the audit knows the true gradient, which no worker formed
    assert bound == measured == 4
    assert loss < limit


def test_accumulated_passes_count_once_each(workers):
    bounds = bounds_of("linear", 2, 3)
    register = {"compressor": "rank_dad", "policy": {"kind": "fixed", "rank": 12}}  # the rows of three passes
    for found in workers(2)(errors, bounds, register):
        assert found < 1e-11


def errors(rank, bounds, register):
    return delivered(rank, bounds, "linear", register, rows=[(1, 1), (2, 1)])["error"]


def test_what_has_no_factors_or_no_rank_is_declined():
    layer = ParameterInfo("w", (8, 8), torch.float32, capture="linear")
    tokens = ParameterInfo("w", (8, 8), torch.float32, capture="embedding")
    method = compress.RankDAD()
    assert "needs a rank" in method.fit(Sizing(layer, None, None, 4)).reason
    assert "dad sends them" in method.fit(Sizing(tokens, 2, None, 4)).reason
    assert not compress.RankDAD(iterations=1).fit(Sizing(layer, 2, 2, 4)).lossless
    with pytest.raises(ValueError, match=r"iterations: .*greater than or equal to 1"):
        compress.make_compressor({"kind": "rank_dad", "iterations": 0})

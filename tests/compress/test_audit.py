"""Measured ranks and losses."""

import math

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress import measure_rank


def of_rank(rank: int, m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(rank)
    return (torch.randn(m, rank, dtype=torch.float64) @ torch.randn(rank, n, dtype=torch.float64)).to(dtype)


class TestMeasureRank:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("rank", "m", "n"), [(1, 5, 5), (16, 256, 256), (3, 10, 200), (10, 200, 10)])
    def test_numerical_rank_is_the_true_one(self, rank, m, n, dtype):
        assert measure_rank(of_rank(rank, m, n, dtype)).numerical == rank

    def test_the_papers_count_takes_float32_roundoff_for_rank(self):
        # Errata 5: epsilon times the largest singular value is no threshold for float32.
        torch.manual_seed(0)
        found = measure_rank(torch.randn(512, 16) @ torch.randn(16, 512))
        assert found.numerical == 16
        assert found.paper > 16

    def test_a_noise_floor_hides_what_cancellation_left(self):
        noise = 1e-7 * of_rank(7, 20, 20, torch.float32)
        assert measure_rank(noise).numerical == 7
        assert measure_rank(noise, noise_floor=1e-4).numerical == 0

    def test_measures_of_known_spectra(self):
        found = measure_rank(torch.diag(torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0])))
        assert found.numerical == found.energy99 == 4
        assert found.stable == pytest.approx(4)
        assert found.effective == pytest.approx(4)
        found = measure_rank(torch.diag(torch.tensor([100.0, 1.0, 1.0])))
        assert (found.numerical, found.energy99) == (3, 1)
        assert found.stable == pytest.approx(1.0002)

    def test_zero_has_rank_zero(self):
        found = measure_rank(torch.zeros(3, 4))
        assert (found.numerical, found.paper, found.stable, found.effective, found.energy99) == (0, 0, 0, 0, 0)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, value):
        with pytest.raises(ValueError, match="finite"):
            measure_rank(torch.tensor([[value]]))

    def test_what_is_no_matrix_is_refused(self):
        with pytest.raises(ValueError, match="two axes"):
            measure_rank(torch.zeros(3))


def chain(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(4)
    layers = [nn.Linear(32, 32, dtype=dtype), nn.Linear(32, 2, dtype=dtype), nn.Linear(2, 32, dtype=dtype)]
    return nn.Sequential(*layers, nn.Linear(32, 32, dtype=dtype))


def audited(rank, policy, steps, every, drift):
    """Audit rows, and this worker's delivered and true gradients of the last step."""
    import torch.distributed as dist

    model = chain(torch.float64)
    generator = torch.Generator().manual_seed(rank)
    example = torch.randn(16, 32, dtype=torch.float64)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return y.square().mean()

    bounds = compress.rank_bounds(model, (example,), loss=loss, world_size=2)
    ddp = DistributedDataParallel(model)
    if drift and rank == 1:  # a weight that the workers do not share breaks every bound
        with torch.no_grad():
            model[2].weight.add_(torch.randn(32, 2, generator=generator, dtype=torch.float64))
    state = compress.register(ddp, compressor="powersgd", policy=policy, bounds=bounds, audit={"every": every})
    for _ in range(steps):
        x = torch.randn(16, 32, generator=generator, dtype=torch.float64)
        twin = chain(torch.float64)
        twin.load_state_dict(model.state_dict())
        loss(twin(x)).backward()
        true = twin[0].weight.grad.clone()
        dist.all_reduce(true)
        ddp.zero_grad()
        loss(ddp(x)).backward()
    delivered = model[0].weight.grad
    return (
        state.audit_rows(),
        float((delivered - true / 2).norm() / (true / 2).norm()),
        state.bytes_sent,
        state.plan.bytes,
    )


def test_audits_tell_the_loss_of_what_was_delivered(workers):
    first, second = workers(2)(audited, {"kind": "fixed", "rank": 1}, 5, 2, False)
    rows, loss, sent, planned = first
    assert second[0] == []
    assert [row.step for row in rows if row.name == "0.weight"] == [0, 2, 4]
    last = next(row for row in rows if row.step == 4 and row.name == "0.weight")
    assert last.information_loss == pytest.approx(loss)
    assert last.compression_error > 0
    assert last.compression_error != last.information_loss
    assert (last.measured_rank, last.bound, last.violated, last.communicated_rank) == (2, 2, False, 1)
    assert sent == 5 * planned  # audits are not counted


def test_without_error_feedback_both_losses_are_one(workers):
    rows = workers(2)(audited, "bound", 1, 1, False)[0][0]
    compressed = [row for row in rows if row.compressed]
    assert compressed
    for row in compressed:
        assert row.information_loss == row.compression_error < 1e-12
        assert row.cosine == pytest.approx(1)


def test_a_bound_that_does_not_hold_is_found(workers):
    rows = workers(2)(audited, "bound", 1, 1, True)[0][0]
    assert {row.name for row in rows if row.violated} == {"3.weight"}  # what lies behind the odd weight
    assert max(row.information_loss for row in rows if row.violated) < 1e-9  # oversampling still carried it


def audited_or_not(rank, every):
    model = chain(torch.float32)
    ddp = DistributedDataParallel(model)
    compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": 1}, audit={"every": every})
    generator = torch.Generator().manual_seed(rank)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        ddp(torch.randn(16, 32, generator=generator)).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_audits_change_nothing_bit_for_bit(workers):
    with_audits, without = workers(2)(audited_or_not, 1), workers(2)(audited_or_not, 0)
    for first, second in zip(with_audits, without, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def not_finite(rank):
    model = chain(torch.float32)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dense", audit={"every": 1})
    for step in range(2):
        ddp.zero_grad()
        scale = float("inf") if step == 0 and rank == 1 else 1.0
        (ddp(torch.ones(4, 32)).square().mean() * scale).backward()
    return sorted({row.step for row in state.audit_rows()}), state.step


def test_a_gradient_that_is_not_finite_is_not_audited_and_stops_nothing(workers):
    assert workers(2)(not_finite) == [([1], 2), ([], 2)]

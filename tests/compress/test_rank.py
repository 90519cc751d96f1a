"""Ranks from sketches and from all singular values."""

import dataclasses
import math
import random

import pytest
import torch
from known_ranks import draw
from torch import Tensor

from compress import RankMeasurement, measure_rank, measure_ranks
from compress.audit import spectrum
from compress.audit.task import _OVERSAMPLING

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TYPES = [torch.float32, torch.float64]
N = 300
"""A side from which sketches are taken."""


def of_rank(rank: int, m: int = N, n: int = N, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(side, rank, generator=generator, dtype=dtype) for side in (m, n))
    return left @ right.mT


def with_spectrum(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """N × N, with these singular values and zeros."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    return (left[:, : len(values)] * torch.tensor(values) @ right[:, : len(values)].mT).to(dtype)


def is_sketched(found: RankMeasurement) -> bool:
    return found.paper is None and found.effective is None and len(found.singular_values) < N


def assert_same(first: RankMeasurement, second: RankMeasurement) -> None:
    for field in dataclasses.fields(RankMeasurement):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b, field.name


def test_ranks_of_random_matrices_are_right_whatever_the_bound():
    # The full run is benchmarks/rank_accuracy.py.
    clear = sketched = 0
    for seed in range(300):
        drawn = random.Random(seed)
        known = draw(drawn, large=0.05)
        for name, bound in known.bounds(drawn).items():
            found = measure_rank(known.matrix, bound=bound)
            assert found.certified
            sketched += found.paper is None
            if known.is_clear(found.tolerance):
                clear += 1
                assert found.numerical == known.rank, (seed, name)
    assert clear > 1000
    assert sketched > 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
class TestSketch:
    @pytest.mark.parametrize(("rank", "m", "n"), [(1, 300, 300), (16, 256, 700), (20, 700, 280), (0, 300, 300)])
    def test_it_gives_the_measures_of_the_full_spectrum(self, rank, m, n, dtype, device):
        matrix = of_rank(rank, m, n, dtype).to(device)
        found, full = measure_rank(matrix, bound=rank), measure_rank(matrix)
        assert is_sketched(found)
        assert not is_sketched(full)
        assert found.numerical == full.numerical == rank
        assert found.certified
        assert found.energy99 == full.energy99
        for name in ("tolerance", "stable"):
            assert getattr(found, name) == pytest.approx(getattr(full, name), rel=1e-5)
        assert found.singular_values.dtype == torch.float64
        assert torch.allclose(found.singular_values[:rank], full.singular_values[:rank], rtol=1e-5)

    def test_a_rank_above_the_bound_is_found(self, dtype, device):
        matrix = of_rank(40, dtype=dtype).to(device)
        found = measure_rank(matrix, bound=8)
        assert not is_sketched(found)
        assert_same(found, measure_rank(matrix))
        assert found.numerical == 40

    def test_a_bound_that_is_much_too_small_costs_no_residual(self, dtype, device, monkeypatch):
        monkeypatch.delattr(spectrum.Sketch, "residual")
        assert measure_rank(of_rank(40, dtype=dtype).to(device), bound=8).numerical == 40

    def test_what_the_sketch_cannot_see_is_found_by_the_residual(self, dtype, device):
        bound = 8
        unseen = torch.linalg.svd(spectrum._random(bound + _OVERSAMPLING, torch.empty(0, N))).Vh[-60:]
        matrix = (of_rank(60, dtype=dtype)[:, :60] @ unseen.to(dtype) + of_rank(2, dtype=dtype)).to(device)
        found = measure_rank(matrix, bound=bound)
        assert found.numerical == 62
        assert found.certified


class TestProof:
    """The tolerance is a noise floor of 1; 4 singular values are far above."""

    def found(self, others: list[float]) -> RankMeasurement:
        return measure_rank(with_spectrum([1e3, 1e3, 900.0, 800.0, *others]), bound=4, noise_floor=1.0)

    def test_what_is_clear_of_the_tolerance_is_proven(self):
        for others in ([], [0.9] * 4, [1.1] * 4, [1.1, 0.9], [0.01] * 250):
            found = self.found(others)
            assert found.numerical == 4 + others.count(1.1)
            assert is_sketched(found)

    @pytest.mark.parametrize("others", [[0.5] * 200, [0.999] * 200, [1.1, *[0.05] * 200]])
    def test_what_is_not_is_decomposed_in_full(self, others):
        found = self.found(others)
        assert not is_sketched(found)
        assert found.certified
        assert found.numerical == 4 + others.count(1.1)

    @pytest.mark.parametrize("other", [1.0 + 1e-14, 1.0 - 1e-14])
    def test_at_the_tolerance_nothing_is_proven(self, other):
        assert not is_sketched(self.found([other]))

    def test_a_sketch_that_leaves_out_energy_does_not_tell_measures_of_it(self):
        noise = with_spectrum([1e-3] * 250)
        found, full = measure_rank(noise, bound=4, noise_floor=1.0), measure_rank(noise, noise_floor=1.0)
        assert found.numerical == 0
        assert_same(found, full)
        assert found.energy99 == 248


def test_the_full_spectrum_comes_when_asked_for():
    matrix = of_rank(16)
    found = measure_rank(matrix, bound=16, full_spectrum=True)
    assert_same(found, measure_rank(matrix))
    assert found.paper == int((torch.linalg.svdvals(matrix) > 2**-23 * torch.linalg.svdvals(matrix)[0]).sum()) > 16
    shares = found.singular_values / found.singular_values.sum()
    assert found.effective == pytest.approx(float(torch.distributions.Categorical(shares).entropy().exp()))
    assert len(found.singular_values) == N


def test_small_matrices_are_decomposed_in_float64():
    # In float32 a decomposition errs by a third of the tolerance of 8 x 8.
    matrix = of_rank(5, 8, 8)
    exact = torch.linalg.svdvals(matrix.to(torch.float64))
    assert torch.allclose(measure_rank(matrix).singular_values, exact, rtol=0, atol=1e-12)


class TestBatches:
    def test_they_give_what_single_calls_give(self):
        shapes = [(5, 7), (7, 5), (64, 64), (1, 9), (300, 300), (0, 4), (20, 90)]
        matrices, bounds, floors, dtypes = [], [], [], []
        for i, (m, n) in enumerate(shapes * 12):
            dtype = (torch.float32, torch.float64, torch.bfloat16)[i % 3]
            matrices.append((of_rank(1 + i % 5, m, n) * 10.0 ** (i % 50 - 25)).to(dtype))
            bounds.append((None, 4, 0, 400)[i % 4])
            floors.append((None, 1e-3)[i % 2])
            dtypes.append((None, torch.bfloat16)[i % 5 == 0])
        together = measure_ranks(matrices, bounds=bounds, noise_floors=floors, dtypes=dtypes)
        for found, matrix, bound, floor, dtype in zip(together, matrices, bounds, floors, dtypes, strict=True):
            assert_same(found, measure_rank(matrix, bound=bound, noise_floor=floor, dtype=dtype))

    def test_none_is_none(self):
        assert measure_ranks([]) == []

    def test_small_matrices_of_one_shape_are_decomposed_together(self, monkeypatch):
        calls = []
        original = torch.linalg.svdvals
        monkeypatch.setattr(torch.linalg, "svdvals", lambda batch: calls.append(batch.shape) or original(batch))
        measure_ranks([of_rank(3, 10, 10, torch.float64)] * 50)
        assert calls == [(50, 10, 10)]


class TestScale:
    @pytest.mark.parametrize("bound", [5, None])
    @pytest.mark.parametrize("size", [20, N])
    @pytest.mark.parametrize(
        ("dtype", "exponent"),
        [(torch.float32, e) for e in (-100, -40, 40, 100)] + [(torch.float64, e) for e in (-980, -400, 400, 980)],
    )
    def test_powers_of_two_change_nothing(self, dtype, exponent, size, bound):
        matrix = of_rank(5, size, size, dtype)
        found, scaled = (measure_rank(each, bound=bound) for each in (matrix, torch.ldexp(matrix, _exponent(exponent))))
        assert scaled.numerical == found.numerical == 5
        assert scaled.paper == found.paper
        assert scaled.stable == pytest.approx(found.stable, rel=1e-6)
        assert math.ldexp(scaled.tolerance, -exponent) == pytest.approx(found.tolerance, rel=1e-6)

    @pytest.mark.parametrize("bound", [5, None])
    @pytest.mark.parametrize("dtype", TYPES)
    def test_spacing_of_subnormal_numbers_is_no_rank(self, dtype, bound):
        spacing = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        matrix = (of_rank(5, dtype=torch.float64) * 100 * spacing).to(dtype)  # of two digits or three
        assert measure_rank(matrix, bound=bound).numerical == 5

    def test_the_largest_numbers_do_not_overflow(self):
        for dtype in TYPES:
            matrix = torch.full((N, N), torch.finfo(dtype).max, dtype=dtype)
            for bound in (1, None):
                found = measure_rank(matrix, bound=bound)
                assert (found.numerical, found.energy99) == (1, 1)
                assert found.stable == pytest.approx(1)

    def test_batches_scale_each_matrix_by_itself(self):
        matrix = of_rank(3, 20, 20)
        found = measure_ranks([matrix * 1e-30, matrix, matrix * 1e30])
        assert [each.numerical for each in found] == [3, 3, 3]

    def test_a_noise_floor_is_absolute(self):
        matrix = of_rank(3) * 1e-25
        for bound in (3, None):
            largest = float(measure_rank(matrix, bound=bound).singular_values[0])
            assert measure_rank(matrix, bound=bound, noise_floor=largest / 1e3).numerical == 3
            assert measure_rank(matrix, bound=bound, noise_floor=largest * 2).numerical == 0


def _exponent(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.float64 if abs(value) > 126 else torch.float32)


class TestTolerance:
    @pytest.mark.parametrize("dtype", [*TYPES, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("size", [1, 10, N])
    def test_it_is_the_roundoff_of_the_type(self, dtype, size):
        matrix = of_rank(5, size, size, torch.float64).to(dtype)
        for bound in (5, None):
            found = measure_rank(matrix, bound=bound)
            largest, eps = float(found.singular_values[0]), torch.finfo(dtype).eps
            assert eps * largest <= found.tolerance <= 1.0001 * size * eps * largest
            assert found.numerical == min(5, size)

    def test_the_coarser_type_counts(self):
        matrix = with_spectrum([1.0, 1e-4])
        assert measure_rank(matrix).numerical == 2
        assert measure_rank(matrix, dtype=torch.bfloat16).numerical == 1
        # float32 holds no roundoff of float64, however it was computed
        assert measure_rank(of_rank(4), dtype=torch.float64).numerical == 4

    def test_zero_has_none(self):
        for bound in (None, 3):
            assert measure_rank(torch.zeros(N, N), bound=bound).tolerance == 0
            assert measure_rank(torch.zeros(N, N), bound=bound, noise_floor=0.5).tolerance == 0.5


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 500)])
@pytest.mark.parametrize("bound", [None, 0, 7])
def test_an_empty_matrix_has_rank_zero(shape, bound):
    found = measure_rank(torch.zeros(shape), bound=bound)
    assert (found.numerical, found.paper, found.stable, found.effective, found.energy99) == (0, 0, 0, 0, 0)
    assert found.certified
    assert len(found.singular_values) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("bound", [None, 0, 1, 100])
def test_a_single_row_or_column_works(shape, bound):
    assert measure_rank(torch.ones(shape), bound=bound).numerical == 1
    assert measure_rank(torch.zeros(shape), bound=bound).numerical == 0


@pytest.mark.parametrize(
    ("matrix", "options", "told"),
    [
        (torch.tensor([[math.nan]]), {}, "finite.*NaN or infinity.*(1, 1)"),
        (torch.tensor([[1.0, -math.inf]]), {}, "finite"),
        (torch.full((N, N), math.nan), {"bound": 3}, "finite"),
        (torch.eye(N).fill_diagonal_(math.inf), {"bound": 3}, "finite"),
        (torch.zeros(3), {}, r"two axes, got shape \(3,\)"),
        (torch.zeros(2, 3, 4), {}, "two axes"),
        (torch.zeros(3, 3, dtype=torch.int64), {}, r"real floating-point numbers, got torch\.int64"),
        (torch.zeros(3, 3, dtype=torch.complex64), {}, "real floating-point numbers"),
        (torch.eye(3), {"dtype": torch.int32}, r"dtype must be .*, got torch\.int32"),
        (torch.eye(3), {"bound": -1}, "bound must be 0 or more.*, got -1"),
        (torch.eye(3), {"noise_floor": -1e-9}, "noise_floor must be .* 0 or more.*, got -1e-09"),
        (torch.eye(3), {"noise_floor": math.nan}, "noise_floor must be finite"),
        (torch.eye(3), {"noise_floor": math.inf}, "noise_floor must be finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(matrix, options, told):
    with pytest.raises(ValueError, match=told):
        measure_rank(matrix, **options)


@pytest.mark.parametrize("name", ["bounds", "noise_floors", "dtypes"])
def test_lists_of_another_length_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must hold one entry for each of 2 matrices, got 1"):
        measure_ranks([torch.eye(2)] * 2, **{name: [None]})


def test_one_bad_matrix_among_good_ones_is_refused():
    with pytest.raises(ValueError, match="finite"):
        measure_ranks([torch.eye(4), torch.eye(4) * math.nan])


def test_measuring_is_repeatable_and_touches_nothing():
    matrix = of_rank(8).requires_grad_()
    before, state = matrix.detach().clone(), torch.get_rng_state()
    first = measure_rank(matrix, bound=8)
    torch.manual_seed(1)
    assert_same(first, measure_rank(matrix, bound=8))
    assert not first.singular_values.requires_grad
    torch.manual_seed(2)
    state = torch.get_rng_state()
    measure_rank(matrix, bound=8)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(before, matrix)


def test_views_and_autocast_are_measured_alike():
    matrix = of_rank(8, 2 * N, N)
    assert is_sketched(measure_rank(matrix[::2].mT, bound=8))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_sketched(measure_rank(matrix, bound=8))


def test_what_costs_too_much_is_sketched_and_says_so():
    torch.manual_seed(0)
    matrix = torch.randn(600, 400)
    low = torch.randn(600, 20) @ torch.randn(20, 400)
    state = torch.get_rng_state()
    glimpsed = measure_rank(matrix, affordable=1e6)
    assert not glimpsed.certified
    assert 0 < glimpsed.numerical < 400
    assert glimpsed.paper is glimpsed.effective is None
    exact = torch.linalg.svdvals(matrix)
    assert float(glimpsed.singular_values[0]) == pytest.approx(float(exact[0]), rel=0.2)
    assert glimpsed.stable == pytest.approx(
        float(matrix.norm()) ** 2 / float(glimpsed.singular_values[0]) ** 2, rel=1e-3
    )
    assert measure_rank(matrix, affordable=1e6, full_spectrum=True).numerical == 400
    proven = measure_rank(low, affordable=1e6)  # without a bound
    assert (proven.numerical, proven.certified) == (20, True)
    assert torch.equal(state, torch.get_rng_state())

"""What an elementwise activation adds to the rank of a low-rank matrix."""

import math

import pytest
import torch
from slopes import ALPHAS, SLACK, Pair, beyond, highest, of_rank, phi, randn, repeatable, spectral  # noqa: F401  # `repeatable` is a fixture
from torch import Tensor
from torch.nn import functional as F

from compress.bounds.leaky import (
    activation_threshold,
    calibrated_tail,
    carried_tail,
    derivative_threshold,
    leaky_carried_tail,
    leaky_singular_value_bounds,
    relative_tail,
    slope_bound,
    truncation_gap,
    typical_tail,
)


class TestCertificate:
    @pytest.mark.parametrize(
        ("alpha", "measured", "typical", "certificate"),
        [
            (0.0, 0.419, 0.707, 1.0),
            (0.1, 0.400, 0.633, 0.818),
            (0.5, 0.294, 0.316, 0.333),
            (0.9, 0.0489, 0.0526, 0.0526),
            (0.99, 0.0047, 0.0050, 0.0050),
            (1.0, 0.0, 0.0, 0.0),
        ],
    )
    def test_the_table_of_slopes(self, alpha, measured, typical, certificate):
        after = phi(of_rank(8, 256, 256), alpha)
        tail = (beyond(after, 8) / after.norm()).item()
        assert tail == pytest.approx(measured, rel=0.06, abs=1e-12)
        assert typical_tail(alpha) == pytest.approx(typical, rel=0.011)
        assert relative_tail(alpha) == pytest.approx(certificate, rel=0.011)
        assert tail <= relative_tail(alpha) + 1e-12

    def test_the_typical_tail_is_no_certificate(self):
        found = 0.0
        for _ in range(3):
            u, v = randn(6, 2), randn(6, 2)

            def share(u: Tensor = u, v: Tensor = v) -> Tensor:
                after = phi(u @ v.T, 0.3)
                return beyond(after, 2) / after.norm()

            found = max(found, highest(share, [u, v]))
        assert typical_tail(0.3) == pytest.approx(0.474, abs=5e-4)
        assert found == pytest.approx(0.526, abs=5e-3)
        assert relative_tail(0.3) == pytest.approx(0.538, abs=5e-4)
        # what the search runs into, exactly: three points around the origin of a plane
        z = torch.ones(3, 3, dtype=torch.float64) - 3 * torch.eye(3, dtype=torch.float64)
        after = phi(z, 0.3)
        assert int(torch.linalg.matrix_rank(z)) == 2
        assert (beyond(after, 2) / after.norm()).item() == pytest.approx(1.4 / math.sqrt(1.4**2 + 2 * 1.6**2))

    @pytest.mark.parametrize("rank", [2, 3])
    def test_some_matrices_attain_the_certificate(self, rank):
        z = torch.ones(rank + 1, rank + 1, dtype=torch.float64) - (rank + 1) * torch.eye(rank + 1, dtype=torch.float64)
        after = phi(z, 1 / rank)
        assert (beyond(after, rank) / after.norm()).item() == pytest.approx(relative_tail(1 / rank))

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_random_matrices_keep_to_it(self, alpha):
        for trial in range(150):
            rank = 1 + trial % 4
            z = of_rank(rank, 7, 9) if trial % 2 else (randn(7, rank) + 2) @ (randn(rank, 9) - 1)
            share = (z.clamp(min=0).square().sum() / z.square().sum()).item()
            after = phi(z, alpha)
            limit = relative_tail(alpha, share)
            # the best multiple leaves exactly this
            left = after - (share + alpha * (1 - share)) * z
            assert left.norm().item() == pytest.approx(limit * after.norm().item())
            assert beyond(after, rank) <= limit * after.norm() + 1e-12
            assert limit <= relative_tail(alpha) + 1e-12

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_any_mask_keeps_to_it(self, alpha):
        for trial in range(150):
            rank = 1 + trial % 4
            x = of_rank(rank, 7, 9)
            keep = torch.rand(7, 9) < torch.rand(())
            masked = torch.where(keep, x, alpha * x)
            share = (x[keep].square().sum() / x.square().sum()).item()
            assert beyond(masked, rank) <= relative_tail(alpha, share) * masked.norm() + 1e-12
            assert relative_tail(alpha, share) <= relative_tail(alpha) + 1e-12

    def test_the_worst_share(self):
        for alpha in (0.1, 0.5, 0.9):
            assert relative_tail(alpha, alpha / (1 + alpha)) == pytest.approx(relative_tail(alpha))
        assert relative_tail(0.0, 0.0) == relative_tail(0.0, 1.0) == relative_tail(0.5, 0.0) == 0


def chain(
    alphas: list[float], start: Tensor, weights: list[Tensor], biases: list[Tensor], multiple
) -> tuple[Pair, Tensor]:
    """The activations behind Leaky-ReLUs, those of the linear stand-in, and the norm budget."""
    exact = linear = start
    budget = start.norm()
    for alpha, weight, bias in zip(alphas, weights, biases, strict=True):
        budget = spectral(weight) * budget + bias.norm() * math.sqrt(len(start))
        exact, linear = phi(exact @ weight.T + bias, alpha), linear @ weight.T + bias
        linear = multiple(linear, alpha) * linear
    return (exact, linear), budget


def fixed(_: Tensor, alpha: float) -> float:
    return (1 + alpha) / 2


def best(z: Tensor, alpha: float) -> float:
    share = (z.clamp(min=0).square().sum() / z.square().sum()).item()
    return share + alpha * (1 - share)


class TestCarried:
    @pytest.mark.parametrize("biased", [False, True])
    def test_random_networks_keep_to_it(self, biased):
        for trial in range(150):
            alphas = torch.rand(1 + trial % 4).tolist()
            weights = [randn(6, 6) for _ in alphas]
            biases = [biased * randn(6) for _ in alphas]
            start = of_rank(2, 9, 6)
            (exact, linear), budget = chain(alphas, start, weights, biases, fixed)
            limit = leaky_carried_tail(alphas)
            assert (exact - linear).norm() <= limit * budget
            assert beyond(exact, 2 + biased) <= limit * budget
            assert limit < 1
            (exact, linear), budget = chain(alphas, start, weights, biases, best)
            general = carried_tail([relative_tail(alpha) for alpha in alphas])
            assert (exact - linear).norm() <= general * budget
            assert limit <= general + 1e-12

    def test_it_is_reached_by_the_stand_in(self):
        # Where everything is positive the network is linear, and the stand-in is smaller by Π(1+α)/2.
        alphas = [0.2, 0.5, 0.7]
        weights = [torch.eye(3, dtype=torch.float64)] * 3
        (exact, linear), budget = chain(alphas, randn(4, 3).abs(), weights, [torch.zeros(3)] * 3, fixed)
        assert ((exact - linear).norm() / budget).item() == pytest.approx(leaky_carried_tail(alphas))

    @pytest.mark.parametrize(("alpha", "layers", "reached"), [(0.9, 1, 0.049), (0.9, 2, 0.088), (0.5, 2, 0.33)])
    def test_chosen_weights_come_near_and_keep_to_it(self, alpha, layers, reached):
        found = 0.0
        for _ in range(2):
            u, v, *weights = randn(6, 2), randn(6, 2), *(randn(6, 6) for _ in range(layers))
            zeros = [torch.zeros(6, dtype=torch.float64)] * layers

            def share(
                u: Tensor = u, v: Tensor = v, weights: list[Tensor] = weights, zeros: list[Tensor] = zeros
            ) -> Tensor:
                (exact, _), budget = chain([alpha] * layers, u @ v.T, weights, zeros, fixed)
                return beyond(exact, 2) / budget

            found = max(found, highest(share, [u, v, *weights], steps=250))
        assert reached <= found <= leaky_carried_tail([alpha] * layers) * SLACK
        assert found <= carried_tail([relative_tail(alpha)] * layers)

    def test_an_error_at_the_start_is_carried(self):
        alphas = [0.3, 0.8]
        for _ in range(50):
            low = of_rank(2, 9, 6)
            noise = randn(9, 6)
            start = low + noise * (0.2 * low.norm() / noise.norm())
            error = (beyond(start, 2) / start.norm()).item()
            weights, zeros = [randn(6, 6), randn(6, 6)], [torch.zeros(6)] * 2
            (exact, _), budget = chain(alphas, start, weights, zeros, fixed)
            assert beyond(exact, 2) <= leaky_carried_tail(alphas, error=error) * budget
        assert leaky_carried_tail([], error=0.25) == carried_tail([], error=0.25) == 0.25
        assert leaky_carried_tail([0.5], error=0.2) == pytest.approx(0.4)  # 0.25 + 0.75 · 0.2
        assert carried_tail([0.5], error=0.2) == pytest.approx(0.8)

    def test_gradients_take_the_slopes_of_both_passes(self):
        for trial in range(100):
            forward, backward = torch.rand(1 + trial % 3).tolist(), torch.rand(1 + trial % 2).tolist()
            biases = [(trial % 2) * randn(6) for _ in forward]
            (a, _), a_budget = chain(forward, of_rank(2, 9, 6), [randn(6, 6) for _ in forward], biases, fixed)
            delta = of_rank(1, 9, 6)
            delta_budget = delta.norm()
            for alpha in backward:
                weight = randn(6, 6)
                delta, delta_budget = delta @ weight, delta_budget * spectral(weight)
                delta = torch.where(torch.rand(9, 6) < 0.5, delta, alpha * delta)
            limit = leaky_carried_tail([*forward, *backward])
            assert beyond(delta.T @ a, 1) <= limit * delta_budget * a_budget

    def test_nothing_holds_relative_to_what_a_later_layer_computes(self):
        # A second weight that evens out the singular values leaves as much beyond the rank as within it.
        first = phi(of_rank(2, 8, 4), 0.9)
        _, s, vh = torch.linalg.svd(first, full_matrices=False)
        second = first @ (vh.T / s)
        assert (beyond(second, 2) / second.norm()).item() == pytest.approx(math.sqrt(0.5))
        assert carried_tail([relative_tail(0.9)] * 2) < 0.11


class TestCalibrated:
    def test_closed_forms(self):
        for alpha in ALPHAS:
            leaky = lambda z, a=alpha: phi(z, a)  # noqa: E731
            assert calibrated_tail(leaky) == pytest.approx(typical_tail(alpha), abs=1e-7)
            assert calibrated_tail(leaky, derivative=True) == pytest.approx(typical_tail(alpha), abs=1e-7)
        assert calibrated_tail(torch.relu) == pytest.approx(math.sqrt(0.5), abs=1e-12)
        assert calibrated_tail(torch.relu, offset=True) == pytest.approx(math.sqrt(0.5 - 1 / math.pi), abs=1e-12)
        inside = math.erf(math.sqrt(0.5))
        assert calibrated_tail(F.hardtanh, derivative=True) == pytest.approx(math.sqrt(1 - inside), abs=1e-10)
        assert calibrated_tail(torch.abs) == pytest.approx(1)
        assert calibrated_tail(torch.exp) == pytest.approx(
            math.sqrt(1 - 1 / math.e), abs=1e-10
        )  # E[z·eᶻ]² = e, E[e²ᶻ] = e²
        assert calibrated_tail(torch.sin, derivative=True) == pytest.approx(
            math.sqrt(1 - math.exp(-1) / ((1 + math.exp(-2)) / 2)), abs=1e-10
        )

    def test_linear_and_constant_functions_add_nothing(self):
        assert calibrated_tail(lambda z: 3 * z) == pytest.approx(0, abs=1e-12)
        assert calibrated_tail(lambda z: -z, derivative=True) == pytest.approx(0, abs=1e-12)
        assert calibrated_tail(lambda z: 2 * z + 1, offset=True) == pytest.approx(0, abs=1e-12)
        assert calibrated_tail(torch.zeros_like) == calibrated_tail(torch.zeros_like, derivative=True) == 0
        assert calibrated_tail(torch.ones_like) == 1

    @pytest.mark.parametrize(
        "function",
        [
            *(F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.elu, F.softplus, F.hardtanh, F.relu6, F.mish),
            *(F.hardswish, torch.nn.LeakyReLU(0.1), torch.nn.ReLU(inplace=True)),
        ],
    )
    def test_agrees_with_sampled_data(self, function):
        z, x = randn(1_000_000), randn(1_000_000)
        leaf = z.clone().requires_grad_()
        (mask,) = torch.autograd.grad(function(leaf.clone()).sum(), leaf)
        value = function(z.clone())
        for target, base, found in [
            (value, z, calibrated_tail(function)),
            (mask * x, x, calibrated_tail(function, derivative=True)),
        ]:
            rest = target - (target @ base) / (base @ base) * base
            assert found == pytest.approx((rest.norm() / target.norm()).item(), abs=4e-3)
            assert 0 < found < 1
        with torch.no_grad():
            assert calibrated_tail(function, derivative=True) > 0

    def test_the_derivative_may_be_given(self):
        given = calibrated_tail(torch.tanh, lambda z: 1 - torch.tanh(z).square())
        assert given == pytest.approx(calibrated_tail(torch.tanh, derivative=True), abs=1e-12)


class TestErrors:
    @pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
    def test_slopes_outside_the_range(self, alpha):
        z = randn(3, 3)
        for call in [
            lambda: slope_bound(z, alpha),
            lambda: activation_threshold(z, alpha),
            lambda: derivative_threshold(z, z, alpha),
            lambda: leaky_singular_value_bounds(z, alpha),
            lambda: truncation_gap(z, alpha, 1, z),
            lambda: relative_tail(alpha),
            lambda: typical_tail(alpha),
            lambda: leaky_carried_tail([alpha]),
        ]:
            with pytest.raises(ValueError, match=r"alpha .*from 0 .*to 1"):
                call()

    @pytest.mark.parametrize(
        ("matrix", "says"),
        [
            (torch.zeros(3), "two axes"),
            (torch.zeros(2, 2, 2), r"two axes.*\(2, 2, 2\)"),
            (torch.zeros(2, 2, dtype=torch.int64), "floating point, got torch.int64"),
            (torch.full((2, 2), math.nan), "finite"),
            (torch.full((2, 2), math.inf), "finite"),
        ],
    )
    def test_what_is_no_finite_matrix(self, matrix, says):
        for call in [
            lambda: slope_bound(matrix, 0.5),
            lambda: activation_threshold(matrix, 0.5),
            lambda: derivative_threshold(torch.zeros(2, 2), matrix, 0.5),
            lambda: leaky_singular_value_bounds(matrix, 0.5),
            lambda: truncation_gap(torch.zeros(2, 2), 0.5, 1, matrix),
        ]:
            with pytest.raises(ValueError, match=says):
                call()

    def test_shapes_ranks_and_sizes(self):
        z = randn(4, 3)
        with pytest.raises(ValueError, match=r"one shape.*\(4, 3\).*\(3, 4\)"):
            derivative_threshold(z, z.T, 0.5)
        with pytest.raises(ValueError, match=r"3 wide.*\(2, 4\)"):
            truncation_gap(z, 0.5, 1, randn(2, 4))
        for rank in (-1, 4):
            with pytest.raises(ValueError, match=f"from 0 to 3.*got {rank}"):
                truncation_gap(z, 0.5, rank, randn(2, 3))
        for share in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="positive_share"):
                relative_tail(0.5, share)
        for size in (-0.1, math.inf, math.nan):
            for call in [
                lambda size=size: carried_tail([size]),
                lambda size=size: carried_tail([], error=size),
                lambda size=size: leaky_carried_tail([0.5], error=size),
            ]:
                with pytest.raises(ValueError, match="relative size"):
                    call()

    def test_functions_that_are_not_elementwise(self):
        with pytest.raises(ValueError, match=r"elementwise.*shape \(\)"):
            calibrated_tail(torch.sum)
        with pytest.raises(ValueError, match="NaN or infinity"):
            calibrated_tail(torch.log)
        with pytest.raises(ValueError, match="leave out"):
            calibrated_tail(torch.relu, derivative=True, offset=True)

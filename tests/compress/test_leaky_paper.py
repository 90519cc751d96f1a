"""The paper's numerical threshold, and its Leaky-ReLU singular values."""

import math

import pytest
import torch
from slopes import ALPHAS, SLACK, highest, of_rank, phi, randn, repeatable, spectral  # noqa: F401  # `repeatable` is a fixture
from torch import Tensor
from torch.nn import functional as F

from compress.bounds.leaky import (
    activation_threshold,
    derivative_threshold,
    leaky_singular_value_bounds,
    slope_bound,
    truncation_gap,
)


class TestThreshold:
    def test_counts_of_a_small_matrix(self):
        z = torch.tensor([[1.0, -1.0, 2.0], [3.0, -1.0, 0.0]])
        bound = slope_bound(z, 0.5)
        assert (bound.column_negative, bound.column_positive) == (0, 2)
        assert (bound.row_negative, bound.row_positive) == (1, 2)
        assert bound.column_norm == pytest.approx(math.sqrt(2))
        assert bound.row_norm == pytest.approx(1.5)
        assert bound.factor == pytest.approx(math.sqrt(2))

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_norms_are_the_greatest_of_the_slope_matrix(self, alpha):
        for shape in [(1, 1), (1, 6), (7, 3), (20, 20)]:
            z = randn(*shape)
            slopes = torch.where(z > 0, 1.0, alpha).double()
            bound = slope_bound(z, alpha)
            assert bound.column_norm == pytest.approx(slopes.norm(dim=0).max().item())
            assert bound.row_norm == pytest.approx(slopes.norm(dim=1).max().item())

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_the_product_bound_holds_for_any_matrix_under_the_mask(self, alpha):
        for _ in range(200):
            m, n = torch.randint(1, 9, (2,)).tolist()
            z, x = randn(m, n), of_rank(int(torch.randint(1, 4, ())), m, n)
            bound = slope_bound(z, alpha)
            limit = bound.factor
            assert spectral(phi(z, alpha)) <= limit * spectral(z) * SLACK
            # a sharper factor, of docs/bounds.md
            split = alpha + (1 - alpha) * math.sqrt(min(bound.column_positive, bound.row_positive))
            assert spectral(torch.where(z > 0, x, alpha * x)) <= split * spectral(x) * SLACK
            assert split <= limit * SLACK
            assert spectral(torch.where(z > 0, x, alpha * x)) <= limit * spectral(x) * SLACK

    def test_the_product_bound_is_reached(self):
        # Slope 0 keeps the first column alone, which is all that X has: c₁ = 2, r₁ = 1.
        z = -torch.ones(4, 4, dtype=torch.float64)
        z[:, 0] = 1
        x = z.clamp(min=0)
        bound = slope_bound(z, 0.0)
        assert (bound.column_norm, bound.row_norm, bound.factor) == (2, 1, 1)
        assert spectral(torch.where(z > 0, x, 0 * x)).item() == pytest.approx(bound.factor * spectral(x).item())

    @pytest.mark.parametrize("alpha", ALPHAS)
    @pytest.mark.parametrize("epsilon", [1e-7, 1e-3, 0.05])
    def test_the_predicted_count_is_at_most_the_epsilon_count(self, alpha, epsilon):
        differ = 0
        for _ in range(30):
            z, x = of_rank(3, 16, 12) + 0.01 * randn(16, 12), randn(16, 12)
            for found in [
                activation_threshold(z, alpha, epsilon=epsilon),
                derivative_threshold(z, x, alpha, epsilon=epsilon),
            ]:
                assert 1 <= found.count <= found.epsilon_count <= 12
                differ += found.count < found.epsilon_count
        assert differ or epsilon < 1e-3

    def test_the_threshold_is_equation_nine(self):
        z, x = randn(9, 5), randn(9, 5)
        factor = slope_bound(z, 0.2).factor
        singular = torch.linalg.svdvals(phi(z, 0.2))
        found = activation_threshold(z, 0.2, epsilon=0.1)
        assert found.threshold == pytest.approx(0.1 * factor * spectral(z).item())
        assert found.count == int((singular > found.threshold).sum())
        assert found.epsilon_count == int((singular > 0.1 * singular[0]).sum())
        assert derivative_threshold(z, x, 0.2, epsilon=0.1).threshold == pytest.approx(
            0.1 * factor * spectral(x).item()
        )

    def test_the_mask_is_that_of_the_pre_activations(self):
        # J is of rank 1; halving its diagonal makes it full.
        z = torch.ones(5, 5) - 2 * torch.eye(5)
        found = derivative_threshold(z, torch.ones(5, 5), 0.5)
        assert found.count == found.epsilon_count == 5

    def test_in_the_linear_case_it_stands_higher_by_the_root_of_the_rows(self):
        # Errata 6: at α = 1 nothing is masked, yet the threshold is √M·ε·σ₁ and not ε·σ₁.
        z = of_rank(8, 64, 64).float()
        found = activation_threshold(z, 1.0)
        epsilon = torch.finfo(torch.float32).eps
        assert found.threshold == pytest.approx(8 * epsilon * spectral(z.double()).item())
        assert found.count == 8
        assert activation_threshold(z.double(), 1.0).threshold < 1e-6 * found.threshold

    def test_zero_and_empty_matrices(self):
        for z in [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(3, 0)]:
            found = activation_threshold(z, 0.1)
            assert (found.threshold, found.count, found.epsilon_count) == (0, 0, 0)
        assert slope_bound(torch.zeros(0, 4), 0.1).factor == 0


class TestLeakySingularValues:
    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_no_input_breaks_the_lemma(self, alpha):
        for m, n in [(3, 5), (6, 6), (8, 3)]:
            matrix = randn(m, n)
            strict, loose = (leaky_singular_value_bounds(matrix, alpha, strict=s)[1] for s in (True, False))
            right = torch.linalg.svd(matrix).Vh
            x = torch.cat([F.normalize(randn(300, n), dim=1), right, -right])
            for k in range(1, min(m, n) + 1):
                assert truncation_gap(matrix, alpha, k - 1, x).max() <= strict[k - 1] * SLACK
                assert truncation_gap(matrix, alpha, k, x).max() <= loose[k - 1] + 1e-12

    def test_ascent_does_not_break_it_either(self):
        matrix = randn(5, 5)
        u, s, vh = torch.linalg.svd(matrix)
        low = (u[:, :2] * s[:2]) @ vh[:2]
        x = randn(40, 5)

        def gap() -> Tensor:
            unit = F.normalize(x, dim=1)
            return (phi(unit @ matrix.T, 0.2) - phi(unit @ low.T, 0.2)).norm(dim=1).max()

        best = highest(gap, [x])
        upper = leaky_singular_value_bounds(matrix, 0.2)[1][2].item()
        assert 0.8 * upper < best <= upper * SLACK
        inputs = F.normalize(x.detach(), dim=1)
        assert truncation_gap(matrix, 0.2, 2, inputs).max().item() == pytest.approx(gap().item())

    @pytest.mark.parametrize("alpha", ALPHAS)
    def test_no_matrix_of_lower_rank_comes_nearer_than_the_lower_limit(self, alpha):
        matrix, k = randn(6, 5), 3
        lower = leaky_singular_value_bounds(matrix, alpha)[0][k - 1]
        top = torch.linalg.svd(matrix).Vh[:k]
        for _ in range(100):
            low = of_rank(k - 1, 6, 5) if torch.rand(()) < 0.5 else matrix @ of_rank(k - 1, 5, 5)
            # x: in the span of the first k right singular vectors, and sent to 0 by L
            x = torch.linalg.svd(low @ top.T).Vh[-1] @ top
            gaps = [(phi(matrix @ y, alpha) - phi(low @ y, alpha)).norm() for y in (x, -x)]
            assert max(gaps) >= lower / SLACK

    def test_at_slope_one_the_strict_definition_gives_singular_values(self):
        matrix = randn(4, 6)
        singular = torch.linalg.svdvals(matrix)
        lower, upper = leaky_singular_value_bounds(matrix, 1.0)
        torch.testing.assert_close(lower, singular)
        torch.testing.assert_close(upper, singular)
        loose = leaky_singular_value_bounds(matrix, 1.0, strict=False)[1]
        torch.testing.assert_close(loose, torch.cat([singular[1:], singular.new_zeros(1)]))
        right = torch.linalg.svd(matrix).Vh
        for k in range(1, 5):
            assert truncation_gap(matrix, 1.0, k - 1, right).max().item() == pytest.approx(singular[k - 1].item())

    def test_types_and_empty_inputs(self):
        assert leaky_singular_value_bounds(randn(3, 2).float(), 0.5)[0].dtype == torch.float64
        assert truncation_gap(randn(3, 2).float(), 0.5, 1, randn(0, 2)).shape == (0,)
        assert leaky_singular_value_bounds(torch.zeros(0, 3), 0.5, strict=False)[1].shape == (0,)

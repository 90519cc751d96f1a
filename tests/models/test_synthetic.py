"""Synthetic data: Gaussian samples and sinusoids, and the folds that all data have."""

from math import pi

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models import Batch, Digits, Gaussian, Reconstruction, Regression, Sinusoids, digest_of
from models.data.dataset import Dataset


def everything(dataset: Dataset) -> Batch:
    """Training and held-out samples together."""
    parts = [samples.take(torch.arange(len(samples))) for samples in (dataset.train, dataset.test)]
    (inputs,) = (torch.cat(tensors) for tensors in zip(*(part.inputs for part in parts), strict=True))
    (targets,) = (torch.cat(tensors) for tensors in zip(*(part.targets for part in parts), strict=True))
    return Batch((inputs,), (targets,))


def inputs_of(data: Gaussian | Sinusoids) -> Tensor:
    return everything(data.load(0)).inputs[0]


class TestFolds:
    def test_folds_of_digits_are_disjoint_and_cover_all_samples(self):
        tests = [Digits().load(fold).test for fold in range(5)]
        assert sum(len(test) for test in tests) == 1797
        assert sorted(torch.cat([test.labels for test in tests]).bincount().tolist())[0] == 174
        assert Digits().load(0).digest != Digits().load(1).digest

    @pytest.mark.parametrize("data", [Digits(), Gaussian(samples=20), Sinusoids(samples=20)])
    @pytest.mark.parametrize("fold", [-1, 5])
    def test_a_fold_that_is_not_is_refused(self, data, fold):
        with pytest.raises(ValueError, match="0 to 4"):
            data.load(fold)

    @pytest.mark.parametrize("data", [Digits(task="reconstruction"), Gaussian(samples=20)])
    def test_reconstruction_targets_are_the_inputs_themselves(self, data):
        batch = data.load(0).train.take(torch.arange(5)).to(torch.device("cpu"), torch.float32)
        assert batch.targets[0] is batch.inputs[0]
        assert batch.inputs[0].dtype == torch.float32


class TestDigests:
    def test_shapes_and_types_count_not_bytes_alone(self):
        numbers = torch.arange(6)
        parts = [numbers, numbers.view(2, 3), numbers.view(3, 2), numbers.view(torch.float64), None, "", numbers[:0]]
        assert len({digest_of(part) for part in parts}) == len(parts)
        assert digest_of(numbers, numbers) != digest_of(torch.cat([numbers, numbers]))
        assert digest_of(numbers.view(2, 3).T) == digest_of(numbers.view(2, 3).T.contiguous().numpy())

    def test_last_bits_that_processors_differ_in_do_not_count(self, monkeypatch):
        data, decompose = Gaussian(samples=20, rank=3), torch.linalg.qr
        dataset = data.load(0)
        monkeypatch.setattr(torch.linalg, "qr", lambda matrix: [part * (1 + 2**-52) for part in decompose(matrix)])
        other = data.load(0)
        assert not torch.equal(everything(dataset).inputs[0], everything(other).inputs[0])
        assert dataset.digest == other.digest

    @pytest.mark.parametrize("data", [Gaussian, Sinusoids])
    def test_settings_that_decide_samples_count(self, data):
        settings = [{}, {"seed": 1}, {"samples": 20}, {"features": 4}]
        assert len({data(**change).load(fold).digest for change in settings for fold in (0, 1)}) == 8
        assert data(partition="by_class", train_samples=9).load(0).digest == data().load(0).digest

    def test_samples_that_are_left_out_count(self):
        dataset = Gaussian(samples=20).load(0)
        limits = [(None, None), (5, None), (None, 2), (5, 2)]
        assert len({dataset.limited(*limit).digest for limit in limits}) == 4
        assert dataset.limited(100, 100).digest == dataset.digest


class TestGaussian:
    def test_samples_have_mean_zero_and_covariance_one(self):
        samples = inputs_of(Gaussian(features=5, samples=40_000))
        assert torch.allclose(samples.mean(0), torch.zeros(5).double(), atol=0.03)
        assert torch.allclose(samples.T.cov(), torch.eye(5).double(), atol=0.04)

    @pytest.mark.parametrize(
        ("covariance", "expected"),
        [
            (2.0, [[2.0, 0, 0], [0, 2, 0], [0, 0, 2]]),
            ((1.0, 4.0, 0.0), [[1.0, 0, 0], [0, 4, 0], [0, 0, 0]]),
            (((2.0, 1.0, 0.0), (1.0, 3.0, -1.0), (0.0, -1.0, 1.0)), [[2.0, 1, 0], [1, 3, -1], [0, -1, 1]]),
        ],
    )
    def test_mean_and_covariance_are_those_asked_for(self, covariance, expected):
        mean = (1.0, -2.0, 0.5)
        samples = inputs_of(Gaussian(features=3, samples=40_000, mean=mean, covariance=covariance))
        assert torch.allclose(samples.mean(0), torch.tensor(mean).double(), atol=0.05)
        assert torch.allclose(samples.T.cov(), torch.tensor(expected).double(), atol=0.1)

    def test_an_embedding_keeps_mean_and_covariance_in_a_space_of_few_dimensions(self):
        data = Gaussian(features=40, rank=3, samples=20_000, mean=3.0, covariance=(1.0, 4.0, 9.0))
        samples = inputs_of(data)
        assert torch.linalg.matrix_rank(samples) == 3
        assert float(samples.mean(0).norm()) == pytest.approx(27**0.5, abs=0.1)
        variances = torch.linalg.eigvalsh(samples.T.cov())[-3:].tolist()
        assert variances == pytest.approx([1, 4, 9], rel=0.05)

    def test_samples_tell_the_rank_asked_for(self):
        assert Gaussian(features=40, rank=6, samples=100).load(0).input_rank == 6
        assert Gaussian(features=40, rank=40, samples=100).load(0).input_rank is None
        assert Gaussian(features=40, samples=100).load(0).input_rank is None

    def test_a_covariance_of_low_rank_makes_samples_of_low_rank(self):
        samples = inputs_of(Gaussian(features=3, samples=100, covariance=((1.0, 1.0, 0.0), (1.0, 1.0, 0.0), (0, 0, 1))))
        assert torch.linalg.matrix_rank(samples, rtol=1e-10) == 2

    def test_clusters_of_a_mixture_are_as_many_and_as_far_apart_as_asked_for(self):
        data = Gaussian(features=30, samples=3000, components=3, separation=10.0, task="classification")
        dataset = data.load(0)
        assert dataset.signature.outputs == 3
        batch = everything(dataset)
        (samples,), (clusters,) = batch.inputs, batch.targets
        assert clusters.bincount().tolist() == [1000, 1000, 1000]
        means = torch.stack([samples[clusters == cluster].mean(0) for cluster in range(3)])
        within = samples - means[clusters]
        assert float(within.var()) == pytest.approx(1, rel=0.02)
        assert float(means.square().mean()) == pytest.approx(100, rel=0.3)
        assert torch.equal(torch.cdist(samples, means).argmin(1), clusters)

    def test_a_regression_is_linear_onto_as_many_features_as_asked_for(self):
        dataset = Gaussian(features=12, samples=100, task="regression", outputs=3).load(0)
        batch = everything(dataset)
        (samples,), (targets,) = batch.inputs, batch.targets
        assert isinstance(dataset.task, Regression)
        assert targets.shape == (100, dataset.signature.outputs) == (100, 3)
        solution = torch.linalg.lstsq(samples, targets).solution
        assert torch.allclose(samples @ solution, targets)
        assert torch.linalg.matrix_rank(targets) == 3

    def test_the_seed_alone_decides(self):
        one, same, other = (inputs_of(Gaussian(samples=20, seed=seed)) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.allclose(one, other)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"features": 4, "rank": 5}, "more than the 4 features"),
            ({"features": 4, "mean": (1.0, 2.0)}, "mean has 2 numbers; give one, or 4"),
            ({"features": 4, "rank": 2, "mean": (1.0,) * 4}, "mean has 4 numbers; give one, or 2"),
            ({"features": 3, "covariance": (1.0, 2.0)}, "covariance is 2; give a variance, 3 variances, or a 3 × 3"),
            ({"features": 2, "covariance": ((1.0, 2.0), (2.0, 1.0))}, "not symmetric and positive semidefinite"),
            ({"features": 2, "covariance": ((1.0, 1.0), (0.0, 1.0))}, "not symmetric and positive semidefinite"),
            ({"features": 2, "covariance": ((1.0, 1.0), (0.0,))}, "covariance has rows of different lengths"),
            ({"covariance": -1.0}, "covariance"),
            ({"task": "classification"}, "takes 2 components or more"),
            ({"task": "regression"}, "regression alone has outputs"),
            ({"outputs": 3}, "regression alone has outputs"),
            ({"ranks": 3}, "ranks"),
            ({"seed": 2**32}, "less than 4294967296"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, settings, message):
        with pytest.raises(ValidationError, match=message):
            Gaussian(**settings)


class TestSinusoids:
    def test_each_feature_is_a_sinusoid_around_a_constant(self):
        """Neighbours of a·sin(bt) + c obey x(t+h) + x(t−h) − 2c = 2cos(bh)·(x(t) − c): two unknowns a series."""
        series = inputs_of(Sinusoids(points=64, features=4, samples=20)).transpose(1, 2).flatten(0, 1)
        around, at = (series[:, 2:] + series[:, :-2]), series[:, 1:-1]
        for total, middle in zip(around, at, strict=True):
            given = torch.stack([middle, torch.ones_like(middle)], 1)
            slope, offset = torch.linalg.lstsq(given, total).solution
            assert torch.allclose(slope * middle + offset, total, atol=1e-9)
            assert -2 <= slope <= 2

    def test_time_runs_from_minus_two_pi_to_two_pi_and_coefficients_are_standard_normal(self):
        """So that in the middle, at t = 0, a series is c, and odd around it; b is told by steps of π/16."""
        series = inputs_of(Sinusoids(points=65, samples=2000, features=4, task="reconstruction"))
        c = series[:, 32]
        waves = (series - c[:, None]).transpose(1, 2).flatten(0, 1)
        assert torch.allclose(waves, -waves.flip(1))
        around, at = waves[:, 2:] + waves[:, :-2], waves[:, 1:-1]
        b = ((around * at).sum(1) / at.square().sum(1) / 2).clamp(-1, 1).acos() / (4 * pi / 64)
        a = waves[:, 33] / torch.sin(b * pi / 16)
        for variance in (c.var(), b.square().mean(), a.var()):
            assert float(variance) == pytest.approx(1, rel=0.06)

    def test_the_forecast_of_each_point_is_the_next(self):
        dataset = Sinusoids(points=20, samples=20, features=3).load(0)
        batch = everything(dataset)
        (inputs,), (targets,) = batch.inputs, batch.targets
        assert inputs.shape == targets.shape == (20, 20, 3)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert not torch.equal(inputs[:, -1], targets[:, -1])
        assert dataset.signature.each_step

    def test_points_that_are_reconstructed_are_those_that_forecasts_begin_at(self):
        settings = {"points": 20, "samples": 20, "features": 3}
        dataset = Sinusoids(task="reconstruction", **settings).load(0)
        assert isinstance(dataset.task, Reconstruction)
        batch = everything(dataset)
        assert torch.equal(batch.inputs[0], batch.targets[0])
        assert torch.allclose(batch.inputs[0], inputs_of(Sinusoids(**settings)))

    @pytest.mark.parametrize("settings", [{"points": 1}, {"samples": 9}, {"features": 0}, {"task": "classification"}])
    def test_settings_that_cannot_be_are_refused(self, settings):
        with pytest.raises(ValidationError, match=next(iter(settings))):
            Sinusoids(**settings)

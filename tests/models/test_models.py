"""Networks and data: shapes, ranks, folds, metrics."""

import pytest
import torch
from pydantic import ValidationError

from models import MLP, Classification, Digits, Gaussian, Reconstruction


def test_the_bottleneck_is_the_middle_hidden_layer():
    shapes = [tuple(p.shape) for p in MLP(depth=4, width=64, bottleneck=8, bias=False).build(20, 10).parameters()]
    assert shapes == [(64, 20), (8, 64), (64, 8), (10, 64)]


@pytest.mark.parametrize("settings", [{"alpha": 1.1}, {"alpha": -0.1}, {"depth": 1}, {"width": 0}, {"bottleneck": 0}])
def test_knobs_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        MLP(**settings)


def test_folds_of_digits_are_disjoint_and_cover_all_samples():
    tests = [Digits().load(fold).test for fold in range(5)]
    assert sum(len(test) for test in tests) == 1797
    assert sorted(torch.cat([test.targets for test in tests]).bincount().tolist())[0] == 174
    assert Digits().load(0).digest != Digits().load(1).digest


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_is_refused(fold):
    with pytest.raises(ValueError, match="0 to 4"):
        Digits().load(fold)


def test_reconstruction_targets_are_the_inputs_themselves():
    train = Digits(task="reconstruction").load(0).train
    batch = train.take(torch.arange(5)).to(torch.device("cpu"), torch.float64)
    assert batch.targets is batch.inputs


def test_embedded_samples_have_the_rank_asked_for():
    dataset = Gaussian(features=40, rank=6, samples=100).load(0)
    assert int(torch.linalg.matrix_rank(torch.cat([dataset.train.inputs, dataset.test.inputs]))) == 6
    assert dataset.input_rank == 6
    assert Gaussian(features=40, samples=100).load(0).input_rank is None


def test_a_rank_above_the_features_is_refused():
    with pytest.raises(ValidationError, match="more than the 4 features"):
        Gaussian(features=4, rank=5)


@pytest.mark.parametrize("task", [Classification(), Reconstruction()])
def test_sums_over_uneven_shares_give_the_metrics_of_the_whole(task):
    torch.manual_seed(0)
    output = torch.randn(11, 4)
    target = torch.randint(0, 4, (11,)) if isinstance(task, Classification) else torch.randn(11, 4)
    whole = task.summarise(task.sums(output, target))
    parts = sum(task.sums(output[share], target[share]) for share in (slice(0, 3), slice(3, 11)))
    assert task.summarise(parts) == pytest.approx(whole)
    assert whole[0] == pytest.approx(float(task.loss(output, target)), rel=1e-6)

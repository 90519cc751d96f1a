"""A cell's training on real process groups, without Ray: the same on any number of workers."""

import pytest
import torch
from own_data import images
from torch.nn.parallel import DistributedDataParallel

from launch.planning import plan_cell
from launch.study import single_cell
from launch.train import evaluate, train_cell
from models import VGG11

WINDOWS = {"widths": [6, 2], "sequence_length": 4}
SERIES = {"kind": "sinusoids", "points": 12, "features": 3, "samples": 50}
CELLS = {
    "series in windows": ({"kind": "elman", "activation": "tanh", **WINDOWS}, SERIES),
    "gated": ({"kind": "lstm", **WINDOWS}, SERIES),
    "classes": ({"kind": "mlp", "width": 8, "alpha": 0.1}, {"kind": "digits", "train_samples": 101}),
    "fewer held out than workers": (
        {"kind": "bert", "layers": 1, "hidden": 8, "sequence_length": 6},
        "tests.support.own_data:text",
    ),
    "a mixture": (
        {"kind": "mlp", "width": 8},
        {"kind": "gaussian", "features": 6, "samples": 60, "components": 3, "task": "classification"},
    ),
}


def planned(model, data, workers=1, compressor="dense", policy="none", **train):
    settings = {"steps": 7, "batch_size": 8, "log_every": 1, "eval_every": 3, "dtype": "float64", "lr": 0.1} | train
    values = {"model": model, "data": data, "compressor": compressor, "policy": policy, "train": settings}
    return plan_cell(single_cell(values | {"cluster": {"workers": workers}, "audit": {"every": 3}}))


def train(rank, planned):
    records = []
    result = train_cell(planned, torch.device("cpu"), lambda step, metrics: records.append((step, metrics)))
    return records, result


def curve(results) -> dict[tuple[str, int], float]:
    """What was recorded of losses and metrics on rank 0, by name and step."""
    (records, _), *_ = results
    return {
        (name, step): value
        for step, metrics in records
        for name, value in metrics.items()
        if name.startswith(("train/", "eval/"))
    }


@pytest.mark.parametrize("cell", CELLS)
def test_training_is_the_same_on_any_number_of_workers(workers, cell):
    alone = curve(workers(1)(train, planned(*CELLS[cell])))
    assert ("eval/loss", 0) in alone
    assert ("eval/loss", 7) in alone
    for count, accumulation in ((4, 1), (2, 2)):
        shared = workers(count)(train, planned(*CELLS[cell], workers=count, accumulation_steps=accumulation))
        assert curve(shared) == pytest.approx(alone, rel=1e-9), (count, accumulation)


def test_windows_train_on_from_the_state_of_the_window_before(workers):
    """Without the state a window of a series is another computation: its loss differs."""
    model, data = CELLS["series in windows"]
    windows = curve(workers(1)(train, planned(model, data, lr=1e-12)))
    whole = curve(workers(1)(train, planned({**model, "sequence_length": None}, data, lr=1e-12)))
    # Three windows have the mean loss of the whole series, where weights hardly move and the state goes on.
    for step in (1, 2):
        mean = sum(windows["train/loss", 3 * step - offset] for offset in range(3)) / 3
        assert mean == pytest.approx(whole["train/loss", step], rel=1e-6)


@pytest.mark.parametrize("compressor", ["powersgd", "dad"])
def test_lossless_plans_train_as_dense_does(workers, compressor):
    model, data = {"kind": "mlp", "width": 24, "bottleneck": 2}, {"kind": "gaussian", "features": 20, "samples": 60}
    policy = "bound" if compressor == "powersgd" else "none"
    dense = curve(workers(2)(train, planned(model, data, workers=2)))
    results = workers(2)(train, planned(model, data, workers=2, compressor=compressor, policy=policy))
    assert curve(results) == pytest.approx(dense, rel=1e-8)
    assert results[0][1]["metrics"]["summary/compression_ratio"] > 1
    assert results[0][1]["metrics"]["summary/bound_violations"] == 0


def evaluated(rank, count, first_mean):
    """Evaluate a network whose running statistics differ between workers, on data that they cannot share evenly."""
    torch.manual_seed(0)
    dataset = images(0, count=count)
    network = VGG11(width=2).build(dataset.signature).double()
    norm = next(module for module in network if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean.fill_(first_mean + rank)
    return evaluate(DistributedDataParallel(network), dataset, torch.device("cpu"), batch_size=3, prefix="eval")


def test_evaluation_is_exact_for_uneven_shares_and_uses_the_first_workers_statistics(workers):
    for samples in (11, 2):  # two are fewer than workers
        (alone,) = workers(1)(evaluated, samples, 0.5)
        for count in (2, 4):
            for shared in workers(count)(evaluated, samples, 0.5):
                assert shared == pytest.approx(alone, rel=1e-12)
    (alone,) = workers(1)(evaluated, 11, 0.5)
    (other,) = workers(1)(evaluated, 11, 1.5)
    assert other["eval/loss"] != pytest.approx(alone["eval/loss"], rel=1e-6)


def masks(rank, planned):
    """What the first random numbers behind a cell's set-up are, drawn as dropout draws them."""
    train_cell(planned, torch.device("cpu"), lambda step, metrics: None)
    return torch.rand(4).tolist()


def test_workers_drop_other_features_from_networks_that_begin_alike(workers):
    first, second = workers(2)(masks, planned({"kind": "mlp", "width": 4}, {"kind": "digits"}, workers=2, steps=1))
    assert first != second


def test_data_that_differ_between_workers_are_refused(workers):
    cell = planned({"kind": "mlp", "width": 4}, "tests.support.own_data:differing", workers=2)
    with pytest.raises(RuntimeError, match="data differing differ: the study was planned for 0, worker 1 has 1"):
        workers(2)(train, cell)


def poisoned(rank, planned, bad_step):
    """Train with a NaN in one gradient of one worker in one step; the weights after each update, and what was said."""
    import logging

    from launch import train as module

    weights, said, passes, make = [], [], [], module.make_optimizer
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    module.logger.addHandler(handler)

    def spoil(gradient):
        passes.append(1)
        return gradient * float("nan") if rank == 1 and len(passes) == bad_step else gradient

    def make_optimizer(model, settings):
        parameter = next(model.parameters())
        parameter.register_hook(spoil)
        optimizer = make(model, settings)
        optimizer.register_step_post_hook(lambda *_: weights.append(parameter.detach().clone()))
        return optimizer

    module.make_optimizer = make_optimizer
    try:
        result = train_cell(planned, torch.device("cpu"), lambda step, metrics: None)
    finally:
        module.make_optimizer = make
        module.logger.removeHandler(handler)
    return result["metrics"], torch.stack(weights), said


@pytest.mark.parametrize("policy", ["bound", {"kind": "fixed", "rank": 1}])
def test_a_step_that_is_not_finite_is_skipped_counted_and_told_once(workers, policy):
    model, data = {"kind": "mlp", "width": 24, "bottleneck": 2}, {"kind": "gaussian", "features": 20, "samples": 60}
    cell = planned(model, data, workers=2, compressor="powersgd", policy=policy)
    (first, weights, said), (second, others, silent) = workers(2)(poisoned, cell, 3)
    assert first["summary/nonfinite_steps"] == second["summary/nonfinite_steps"] == 1
    assert len(weights) == 6
    assert torch.equal(weights, others)
    assert weights.isfinite().all()
    assert len(said) == 1
    assert "step 3: a gradient holds NaN or infinity" in said[0]
    assert not silent

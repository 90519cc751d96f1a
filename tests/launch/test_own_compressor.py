"""The docs' page on adding a compressor, followed from outside the repository."""

import os
import re
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from nets import deep, grads, loss_of
from pages import ROOT, followed
from torch.nn.parallel import DistributedDataParallel

import compress
from launch.errors import UserError
from launch.planning import plan_cell
from launch.study import read_study
from launch.tracking import cell_params
from launch.train import train_cell


@pytest.fixture
def outside(tmp_path):
    """A folder that holds the files of the docs' page, and is the current one."""
    with followed("compressors.md", tmp_path, ["random_k.py", "study.yaml", "train.py"]) as folder:
        yield folder


def test_the_script_of_the_docs_trains_on_two_workers(outside):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{outside}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    losses, ours, dense = zip(*re.findall(r"loss (\S+), (\d+) bytes a step, dense (\d+)", done.stdout), strict=True)
    assert len(losses) == 2
    assert max(map(float, losses)) < 0.2
    assert int(ours[0]) == 4 * (820 + 64 + 103 + 8)
    assert int(dense[0]) == 4 * (64 * 64 + 64 + 64 * 8 + 8)


def sums(rank, folder, steps):
    """What the docs' method delivers and keeps; its sum, the true one, and the last gradients."""
    sys.path.insert(0, folder)
    from methods.random_k import RandomK

    model, twin = deep(), deep()
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor=RandomK(share=0.2))
    delivered, true = 0.0, 0.0
    for step in range(steps):
        ddp.zero_grad()
        loss_of(ddp, rank, step).backward()
        delivered = delivered + grads(ddp)["0.weight"]
        twin.zero_grad()
        (sum(loss_of(twin, other, step) for other in range(2)) / 2).backward()
        true = true + grads(twin)["0.weight"]
    residual = state.state_dict()["memories"]["0.weight"]["residual"]
    dist.all_reduce(residual)
    return delivered, true, residual / 2, int((grads(ddp)["0.weight"] != 0).sum()), state.bytes_sent, state.plan.bytes


def test_the_method_of_the_docs_loses_nothing_for_good(outside, workers):
    results = workers(2)(sums, str(outside), 6)
    for delivered, true, residual, sent, counted, planned in results:
        assert (delivered - true).norm() > 0.05 * true.norm()
        assert torch.allclose(delivered + residual, true, atol=1e-12)
        assert sent == 116  # a fifth of 24 × 24, rounded up
        assert counted == 6 * planned
    assert torch.equal(results[0][0], results[1][0])


def train(rank, folder, planned):
    return train_cell(planned, torch.device("cpu"), lambda step, metrics: None)["metrics"]


def test_a_study_trains_with_the_class_that_it_names(outside, workers):
    planned = plan_cell(read_study(outside / "study.yaml", ["train.steps=20"]).cells[0])
    assert {assignment.method for assignment in planned.plan.matrices} == {"random_k"}
    assert cell_params(planned)["compressor"] == "methods.random_k:RandomK share=0.2"
    assert planned.cell.config.values["compressor"] == [{"kind": "methods.random_k:RandomK", "share": 0.2}]
    for metrics in workers(2)(train, str(outside), planned):
        assert metrics["summary/bytes_per_step"] == planned.plan.bytes < 0.3 * planned.plan.dense.bytes
        assert metrics["summary/loss"] < metrics["summary/initial_loss"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compressor.share=2", r"compressor: .*'random_k': share: .* less than or equal to 1 \(fields: kind, share\)"),
        ("compressor.shard=0.1", "shard: Extra inputs are not permitted"),
        ("compressor.kind=methods.random_k:Random", "has no class 'Random'; its classes are RandomK; did you mean"),
        ("compressor.kind=methods.random_k:math", "has no class 'math'"),
        ("compressor=methods.random_k:Field", "has no class 'Field'"),
        ("compressor=methods.random_k:Fit", "methods.random_k:Fit is no compressor; derive it from"),
        ("compressor=methods.cheese:Fit", "found no module 'methods.cheese'"),
        ("compressor=methods.random_k:Compressor", "abstract"),
        ("compressor='methods:'", "allowed is package.module:Class"),
    ],
)
def test_mistakes_with_a_class_are_told(outside, override, told):
    with pytest.raises(UserError, match=told):
        read_study(outside / "study.yaml", [override])

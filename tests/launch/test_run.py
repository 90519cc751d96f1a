"""Whole studies: real Ray, real workers, real MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_"))},
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
}
"""A fresh user's: no store and no cluster named."""

PARAMS = {
    "model",
    "data",
    "compressor",
    "policy",
    "rank",
    "bottleneck",
    "sequence_length",
    "alpha",
    "world_size",
    "seed",
    "fold",
}
SUMMARY = {
    "loss",
    "accuracy",
    "information_loss",
    "compression_error",
    "unavoidable_error",
    "iteration_error",
    "train_loss",
    "bytes_per_step",
    "wire_bytes_per_step",
    "compression_ratio",
    "measured_rank",
    "bound",
    "bound_tightness",
    "bound_violations",
    "step_time_ms",
    "communication_ms",
    "samples_per_second",
    "peak_memory_mb",
    "audit_share",
    "nonfinite_steps",
    "initial_loss",
    "initial_accuracy",
    "seconds",
}
AUDITED = (
    "information_loss",
    "compression_error",
    "unavoidable_error",
    "measured_rank",
    "bound_violations",
    "plan_bytes",
)
STEPPED = {"train/loss", "eval/loss", "eval/accuracy", *(f"audit/{name}" for name in AUDITED)}

STUDY = {
    "name": "small",
    "model": {"kind": "mlp", "depth": 6, "width": 64, "bottleneck": 4},
    "data": {"kind": "digits"},
    "compressor": "dense",
    "train": {"steps": 40, "batch_size": 16, "optimizer": "adam", "lr": 0.003, "log_every": 10, "eval_every": 20},
    "audit": {"every": 10},
}


class Command:
    """`python -m launch run` in a folder of its own."""

    def __init__(self, folder: Path, study: dict, *arguments: str) -> None:
        self.folder = folder
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", "run", str(path), *arguments],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
        )

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def wait(self, timeout_s: float = 180) -> int:
        return self.process.wait(timeout_s)

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, condition, timeout_s: float = 120):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, self.text()
            time.sleep(0.2)
        raise AssertionError(f"waited {timeout_s} s in vain:\n{self.text()}")

    def runs(self) -> list:
        experiments = self.client.search_experiments(filter_string="name = 'small'")
        found = self.client.search_runs([e.experiment_id for e in experiments]) if experiments else []
        return sorted(found, key=lambda run: int(run.data.tags.get("gradrank.cell", -1)))

    def cells(self) -> list:
        return [run for run in self.runs() if run.data.tags["gradrank.kind"] == "cell"]

    def running_cell(self):
        if not (self.folder / "mlflow.db").exists() or "step" not in self.text():
            return None
        return next((run for run in self.cells() if run.info.status == "RUNNING"), None)

    def training_workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Command:
    compressions = [
        ["dense", "none"],
        ["powersgd", "bound"],
        ["powersgd", {"kind": "bound", "offset": -1}],
        ["dad", "none"],
    ]
    command = Command(tmp_path_factory.mktemp("finished"), {**STUDY, "sweep": {"compressor, policy": compressions}})
    assert command.wait() == 0, command.text()
    return command


class TestFinishedStudy:
    def test_every_cell_has_all_params_and_summaries(self, finished):
        cells = finished.cells()
        assert [run.info.status for run in cells] == ["FINISHED"] * 4
        for run in cells:
            assert run.data.params.keys() == PARAMS
            for name in PARAMS - {"model", "data", "compressor", "policy"}:
                float(run.data.params[name])
            assert {f"summary/{name}" for name in SUMMARY} | STEPPED == run.data.metrics.keys()
            for name in STEPPED:
                steps = [point.step for point in finished.client.get_metric_history(run.info.run_id, name)]
                assert len(steps) > 1
                assert steps == sorted(set(steps))
            for name in SUMMARY:
                assert len(finished.client.get_metric_history(run.info.run_id, f"summary/{name}")) == 1

    def test_the_parent_and_the_tags_lead_to_the_code_and_the_settings(self, finished):
        study, *cells = finished.runs()
        assert study.data.tags["gradrank.kind"] == "study"
        assert study.info.status == "FINISHED"
        for run in cells:
            assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
            assert len(run.data.tags["gradrank.config_hash"]) == 12
            assert run.inputs.dataset_inputs[0].dataset.name == "digits"
            names = {artifact.path for artifact in finished.client.list_artifacts(run.info.run_id)}
            assert {
                "config.yaml",
                "plan.json",
                "plan_table.json",
                "bounds.json",
                "audits.parquet",
                "audits.png",
            } <= names

    def test_lossless_methods_are_lossless_and_one_below_the_bound_is_not(self, finished):
        dense, bound, below, dad = (run.data.metrics for run in finished.cells())
        assert bound["summary/information_loss"] < 1e-5
        assert dad["summary/information_loss"] < 1e-5
        assert dense["summary/information_loss"] == 0
        assert below["summary/information_loss"] > 0.01
        assert all(run["summary/bound_violations"] == 0 for run in (dense, bound, below, dad))
        assert abs(bound["summary/accuracy"] - dense["summary/accuracy"]) < 0.01
        assert 1 == dense["summary/compression_ratio"] < dad["summary/compression_ratio"]
        assert bound["summary/compression_ratio"] > 1
        assert bound["summary/compression_ratio"] < below["summary/compression_ratio"]

    def test_counted_bytes_are_the_predicted_ones(self, finished):
        for run in finished.cells():
            path = finished.client.download_artifacts(run.info.run_id, "plan.json")
            plan = json.loads(Path(path).read_text())
            assert run.data.metrics["summary/bytes_per_step"] == sum(row["bytes"] for row in plan)
            assert run.data.metrics["summary/wire_bytes_per_step"] == sum(row["wire_bytes"] for row in plan)

    def test_audits_hold_a_row_for_each_matrix_and_audited_step(self, finished):
        run = finished.cells()[1]
        audits = pd.read_parquet(finished.client.download_artifacts(run.info.run_id, "audits.parquet"))
        assert sorted(set(audits["step"])) == [0, 10, 20, 30]
        assert len(audits) == 4 * 6
        assert (audits["measured_rank"] <= audits["bound"]).all()

    def test_the_terminal_ends_with_table_figure_and_the_line_that_opens_mlflow(self, finished):
        text = finished.text()
        assert "accuracy" in text
        assert (finished.folder / "reports" / "small" / "comparison.png").stat().st_size > 10_000
        assert "reports/small/comparison.png" in text
        assert "gradrank ui" in text
        assert "Traceback" not in text

    def test_report_reads_the_study_back(self, finished):
        done = subprocess.run(
            [sys.executable, "-m", "launch", "report", "small", "--markdown", "table.md"],
            cwd=finished.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (finished.folder / "table.md").read_text().count("\n") == 6


def gone(processes: list[psutil.Process], timeout_s: float = 15) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not alive


def test_a_killed_worker_fails_its_cell_within_seconds_and_the_others_run(tmp_path):
    # The first cell would run for hours; the third shows that a restarted group goes on after it.
    command = Command(tmp_path, {**STUDY, "sweep": {"train.steps": [30, 10_000_000, 40]}})
    cell = command.wait_for(lambda: (run := command.running_cell()) and run.data.tags["gradrank.cell"] == "1" and run)
    workers = command.training_workers()
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    killed = time.monotonic()
    command.wait_for(lambda: command.client.get_run(cell.info.run_id).info.status == "FAILED", timeout_s=30)
    assert time.monotonic() - killed < 10
    assert command.wait() == 1
    assert [run.info.status for run in command.runs()] == ["FAILED", "FINISHED", "FAILED", "FINISHED"]
    text = command.text()
    assert f"process {workers[1].pid}" in text
    assert "died" in text
    assert ".gradrank/small-" in text
    assert "Traceback" not in text


def test_ctrl_c_ends_workers_and_marks_runs_killed(tmp_path):
    command = Command(tmp_path, {**STUDY, "train": {**STUDY["train"], "steps": 10_000_000}})
    command.wait_for(command.running_cell)
    family = psutil.Process(command.process.pid).children(recursive=True)
    assert len(command.training_workers()) == 2
    command.process.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    assert [run.info.status for run in command.runs()] == ["KILLED", "KILLED"]
    assert gone(family)
    assert "Traceback" not in command.text()


def test_more_workers_than_the_cluster_has_are_refused(tmp_path):
    command = Command(tmp_path, {**STUDY, "train": {"batch_size": 1000}}, "--set", "cluster.workers=500")
    assert command.wait() == 2
    text = command.text()
    assert "cluster.workers: found 500; allowed is at most" in text
    assert "Traceback" not in text
    assert command.runs() == []


def test_workers_that_ray_does_not_place_fail_their_cells(tmp_path):
    command = Command(tmp_path, {**STUDY, "sweep": {"train.seed": [0, 1]}}, "--set", "cluster.start_timeout_s=0.1")
    assert command.wait() == 1
    assert [run.info.status for run in command.runs()] == ["FAILED"] * 3
    assert "Ray placed no worker within cluster.start_timeout_s = 0.1" in command.text()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_cluster_that_is_not_there_is_told(tmp_path, address):
    command = Command(tmp_path, STUDY, "--set", f"cluster.address={address}")
    assert command.wait() == 2
    assert f"cluster.address: found '{address}'" in command.text()
    assert "Traceback" not in command.text()


def test_one_worker_is_a_study_too(tmp_path):
    study = {**STUDY, "compressor": "powersgd", "policy": "bound"}
    # A reconstruction, described in what a terminal's markup would take for its own.
    study |= {"data": {"kind": "digits", "task": "reconstruction"}, "description": "[/bold]"}
    command = Command(tmp_path, study, "--set", "cluster.workers=1", "--set", "train.dtype=float64")
    assert command.wait() == 0, command.text()
    (cell,) = command.cells()
    assert cell.data.metrics["summary/information_loss"] < 1e-11
    assert cell.data.metrics["summary/compression_ratio"] > 1
    assert 0 < cell.data.metrics["summary/reconstruction_error"] < 1
    assert "summary/accuracy" not in cell.data.metrics

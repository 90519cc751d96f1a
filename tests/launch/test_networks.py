"""Every network on its real data, through Ray and MLflow: the study that docs/networks.md is made of, cut short."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]


def test_every_network_trains_on_its_real_data_within_its_bounds(data_root, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", str(ROOT / "mlflow_configs/networks.yaml")]
        + ["--set", "train.steps=4", "--set", "train.log_every=1", "--set", "audit.every=2"]
        + ["--set", "sweep.compressor, policy=[[powersgd, bound]]"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("networks")
    cells = client.search_runs([experiment.experiment_id], "tags.`gradrank.kind` = 'cell'")
    assert len(cells) == 18
    for cell in cells:
        name, metrics = cell.info.run_name, cell.data.metrics
        assert metrics["summary/bound_violations"] == 0, name
        assert metrics["summary/information_loss"] < 1e-5, name
        first, *_ = client.get_metric_history(cell.info.run_id, "train/loss")
        assert 0 < first.value < 10, name
    networks = {cell.data.params["model"] for cell in cells}
    assert networks == {"mlp", "elman", "gru", "lstm", "vgg11", "resnet16", "resnet18", "bert", "xlm"}

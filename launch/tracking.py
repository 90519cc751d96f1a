"""MLflow, and nothing else here imports it: the driver alone writes, so that no two processes meet in the store."""

import json
import logging
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.tracking import MlflowClient

from compress.spec import Spec
from launch.errors import UserError, first_line
from launch.own import OwnSpec
from launch.planning import PlannedCell, load
from launch.view import TAG_PREFIX, shared_view
from models.spelling import nearest

PARENT = "mlflow.parentRunId"
KIND = "gradrank.kind"
_BATCH = 1000
"""Metrics that MLflow takes in one call."""


def tracking_uri(uri: str | None) -> str:
    """The store to use: the one named, else MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


@dataclass(frozen=True)
class Store:
    """An MLflow store that answered."""

    uri: str
    client: MlflowClient

    @classmethod
    def open(cls, uri: str | None, *, create: bool = False) -> "Store":
        """Open the store; with `create` make it where it is a database file that does not exist.

        Raises:
            UserError: it does not exist, or does not answer.
        """
        resolved = tracking_uri(uri)
        file = Path(resolved.removeprefix("sqlite:///"))
        if resolved.startswith("sqlite:///") and not create and not file.exists():
            raise UserError(
                f"there is no store at {resolved} yet; `gradrank run CONFIG` makes one, --uri names another"
            )
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # A server that is not there should be told in seconds; MLflow would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            # Not mlflow.set_tracking_uri: it would leave the store in this process's environment.
            client = MlflowClient(resolved, registry_uri=resolved)
            client.search_experiments(max_results=1)
        except Exception as error:  # whatever a store raises, it cannot be used
            raise UserError(
                f"tracking.uri: the MLflow store at {resolved} does not answer: {first_line(error)}"
            ) from error
        return cls(resolved, client)

    def experiment(self, name: str) -> str:
        """The id of an experiment, created where it does not exist, restored where it was deleted."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


class StudyRun:
    """The parent run of a study, and a child for each cell."""

    def __init__(self, store: Store, experiment: str, name: str, description: str, values: Mapping[str, Any]) -> None:
        self._store = store
        self._client = store.client
        self.experiment_id = store.experiment(experiment)
        self.experiment = experiment
        tags = {KIND: "study", "mlflow.note.content": description, **_commit()}
        self.run_id = self._create(name, tags)
        self._client.set_experiment_tag(self.experiment_id, TAG_PREFIX + self.run_id, shared_view(self.run_id))
        self._children: dict[int, str] = {}
        self._text(self.run_id, "study.yaml", yaml.safe_dump(dict(values), sort_keys=False))

    def start(self, planned: PlannedCell) -> None:
        """Create a cell's run, with everything that is known before it starts."""
        cell = planned.cell
        tags = {
            KIND: "cell",
            PARENT: self.run_id,
            "gradrank.cell": str(cell.index),
            "gradrank.config_hash": cell.config.digest,
            "gradrank.setting": cell.setting,
            **_commit(),
        }
        run_id = self._children[cell.index] = self._create(cell.name, tags)
        params = [Param(key, str(value)) for key, value in cell_params(planned).items()]
        self._client.log_batch(run_id, params=params)
        self._text(run_id, "config.yaml", yaml.safe_dump(cell.config.values, sort_keys=False))
        self._text(run_id, "plan.json", json.dumps(planned.plan.rows(), indent=2))
        self._text(run_id, "bounds.json", json.dumps(planned.bounds.to_dict(), indent=2))
        table = pd.DataFrame(planned.plan.rows())
        self._client.log_table(run_id, table, "plan_table.json")
        self._client.log_inputs(run_id, datasets=[_dataset_input(planned)])

    def record(self, cell: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Metrics with steps, each `{step, metrics, timestamp_ms}`; values that are not finite are told in a tag."""
        metrics = [
            Metric(key, value, record["timestamp_ms"], record["step"])
            for record in records
            for key, value in self._finite(cell, record["metrics"]).items()
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._children[cell], metrics=metrics[start : start + _BATCH])

    def finish(self, cell: int, summary: Mapping[str, float], audits: pd.DataFrame, figure: Path | None) -> None:
        """Final metrics, audits and their figure; the cell is FINISHED."""
        run_id, now = self._children[cell], int(time.time() * 1000)
        metrics = [Metric(key, value, now, 0) for key, value in self._finite(cell, summary).items()]
        self._client.log_batch(run_id, metrics=metrics)
        if len(audits):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "audits.parquet"
                audits.to_parquet(path, index=False)
                self._client.log_artifact(run_id, str(path))
        if figure is not None:
            self._client.log_artifact(run_id, str(figure))
        self._client.set_terminated(run_id, "FINISHED")

    def fail(self, planned: PlannedCell, message: str, traceback: str) -> None:
        """The cell is FAILED, and says why; one that never started gets its run now."""
        if planned.cell.index not in self._children:
            self.start(planned)
        run_id = self._children[planned.cell.index]
        self._client.set_tag(run_id, "gradrank.failure", message[:5000])
        self._text(run_id, "failure.txt", f"{message}\n\n{traceback}")
        self._client.set_terminated(run_id, "FAILED")

    def end(self, status: str) -> None:
        """End the study's run; children that still run get the same status."""
        for run_id in self._children.values():
            if self._client.get_run(run_id).info.status == "RUNNING":
                self._client.set_terminated(run_id, status)
        self._client.set_terminated(self.run_id, status)

    def attach(self, path: Path) -> None:
        """Keep a file with the study's run."""
        self._client.log_artifact(self.run_id, str(path))

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    def _text(self, run_id: str, name: str, text: str) -> None:
        self._client.log_text(run_id, text, name)

    def _finite(self, cell: int, metrics: Mapping[str, float]) -> dict[str, float]:
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            lost = sorted(set(metrics) - set(finite))
            self._client.set_tag(self._children[cell], "gradrank.not_finite", ", ".join(lost))
        return finite


def cell_params(planned: PlannedCell) -> dict[str, str | float]:
    """The params of a cell: every key on every cell, numeric where they are numbers."""
    config = planned.cell.config
    return {
        "model": config.model.kind,
        "data": config.data.kind,
        "compressor": "+".join(_named(compressor) for compressor in config.compressor),
        "policy": _named(config.policy),
        "rank": planned.plan.largest_rank,
        **config.model.knobs,
        "world_size": config.cluster.workers,
        "seed": config.train.seed,
        "fold": config.train.fold,
    }


def _named(spec: Spec | OwnSpec) -> str:
    """A compressor or policy by its kind, and the settings that are not its defaults."""
    changed = spec.model_dump(exclude_defaults=True, exclude={"kind"})
    return " ".join([spec.kind, *(f"{key}={value}" for key, value in changed.items())])


def _dataset_input(planned: PlannedCell) -> DatasetInput:
    config = planned.cell.config
    dataset = load(config)
    profile = {
        "training samples": len(dataset.train),
        "held-out samples": len(dataset.test),
        "fold": config.train.fold,
        "notes": list(dataset.notes),
    }
    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest,
        source_type="gradrank",
        source=json.dumps({"source": dataset.source, "settings": config.values["data"]}),
        profile=json.dumps(profile),
    )
    return DatasetInput(entity, tags=[InputTag("mlflow.data.context", "training")])


@cache
def _commit() -> dict[str, str]:
    """The git commit of the code that runs, where it is a checkout; an edited one says so."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}
    tags = {"mlflow.source.git.commit": commit}
    if git("status", "--porcelain", "--untracked-files=no"):
        tags["gradrank.uncommitted_changes"] = "true"
    return tags


@dataclass(frozen=True)
class CellRecord:
    """A cell as the store has it."""

    run_id: str
    name: str
    status: str
    setting: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StudyRecord:
    """A study as the store has it, its cells in order."""

    run_id: str
    name: str
    experiment: str
    experiment_id: str
    cells: tuple[CellRecord, ...]


def read_study_record(store: Store, experiment: str | None, run_id: str | None = None) -> StudyRecord:
    """The study of `run_id`; else the newest of an experiment, or of all where that is None.

    Raises:
        UserError: there is no such experiment, or no study in it.
    """
    names = {found.experiment_id: found.name for found in store.client.search_experiments()}
    ids = [key for key, name in names.items() if experiment in (None, name)]
    if not ids:
        known = ", ".join(sorted(names.values())) or "none"
        raise UserError(
            f"experiment {experiment!r} is not in {store.uri}; it has {known}{nearest(str(experiment), names.values())}"
        )
    chosen = f" and attributes.run_id = '{run_id}'" if run_id else ""
    studies = store.client.search_runs(
        ids, f"tags.`{KIND}` = 'study'{chosen}", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not studies:
        where = f"experiment {experiment!r} of {store.uri}" if experiment else store.uri
        raise UserError(f"{where} holds no study; `gradrank run CONFIG` makes one")
    study = studies[0]
    cells = sorted(_all_cells(store, study), key=lambda run: int(run.data.tags["gradrank.cell"]))
    return StudyRecord(
        run_id=study.info.run_id,
        name=study.info.run_name,
        experiment=names[study.info.experiment_id],
        experiment_id=study.info.experiment_id,
        cells=tuple(
            CellRecord(
                run_id=run.info.run_id,
                name=run.info.run_name,
                status=run.info.status,
                setting=run.data.tags.get("gradrank.setting", ""),
                params=run.data.params,
                metrics=run.data.metrics,
            )
            for run in cells
        ),
    )


def _all_cells(store: Store, study: Run) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = store.client.search_runs(
            [study.info.experiment_id], f"tags.`{PARENT}` = '{study.info.run_id}'", page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs

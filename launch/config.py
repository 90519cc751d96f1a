"""A study's settings: frozen and typed, read from YAML, expanded into cells."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress import COMPRESSORS, POLICIES, AuditSettings, Auto, Compressor, Network, NonePolicy, Policy
from compress.cost.units import Bandwidth, Seconds
from launch.kinds import OneOf
from launch.own import OwnCompressor, OwnPolicy
from models import DATA, MODELS, DataConfig, ModelConfig, OwnData, OwnModel
from models.config import Seed
from models.data.folds import FOLDS

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Frozen, typed settings; unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class TrainSettings(Settings):
    """One training run.

    Attributes:
        steps: optimiser steps.
        batch_size: samples of a step, over all workers and accumulation steps together.
        accumulation_steps: backward passes that make up a step.
        optimizer: stochastic gradient descent or Adam.
        lr: learning rate.
        momentum: of stochastic gradient descent.
        weight_decay: L2 penalty.
        dtype: of weights and gradients.
        seed: of weights, order of samples and random factors.
        fold: which fifth of the data is held out, where that is the data's way of holding out.
        log_every: steps between records of the training loss.
        eval_every: steps between evaluations on held-out data; one comes before the first step, and one after the last.
        eval_batch_size: samples that a worker evaluates at once.
        loader_processes: of each worker, that prepare batches ahead; 0 for none, which is best where input is
            quickly read, as from the arrays in the cache.
        bucket_mb: size of DDP's gradient buckets in MiB.
    """

    steps: Count = 300
    batch_size: Count = 128
    accumulation_steps: Count = 1
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    seed: Seed = 0
    fold: Annotated[int, Field(ge=0, lt=FOLDS)] = 0
    log_every: Count = 10
    eval_every: Count = 100
    eval_batch_size: Count = 256
    loader_processes: Annotated[int, Field(ge=0)] = 0
    bucket_mb: Annotated[float, Field(gt=0)] = 25.0


class ClusterSettings(Settings):
    """Where workers run.

    Attributes:
        workers: processes of the data-parallel group; with GPUs one for each.
        address: of a running Ray cluster (`auto` for this machine's); None starts one here, unless
            RAY_ADDRESS names one.
        cpus_per_worker: that Ray reserves for each worker.
        backend: of torch.distributed; `auto` takes nccl where every worker has a GPU, else gloo.
        timeout_s: after which a collective that does not end fails its cell.
        start_timeout_s: after which workers that Ray has not placed fail all cells.
        bandwidth: bits per second between workers (`25gbit`), by which several compressors, or `auto`, are chosen
            from; None for bytes on the wire. Nothing but the plan hangs on it.
        latency: seconds of a message between them (`20us`).
    """

    workers: Count = 2
    address: str | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    bandwidth: Bandwidth | None = None
    latency: Seconds = 0.0

    @model_validator(mode="after")
    def _latency_of_a_network(self) -> Self:
        if self.latency and self.bandwidth is None:
            raise ValueError("cluster.latency is given without cluster.bandwidth; give both, or leave both out")
        return self

    @property
    def network(self) -> Network | None:
        """What plans are made for; None where it is not known."""
        return None if self.bandwidth is None else Network(bandwidth=self.bandwidth, latency=self.latency)


class TrackingSettings(Settings):
    """Where results go.

    Attributes:
        uri: of the MLflow store; None takes MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.
        experiment: of MLflow; None takes the study's name.
    """

    uri: str | None = None
    experiment: str | None = None


class CellConfig(Settings):
    """One training run of a study, everything decided."""

    model: Annotated[ModelConfig, OneOf(MODELS, "model", own=OwnModel)]
    data: Annotated[DataConfig, OneOf(DATA, "data", own=OwnData)]
    compressor: Annotated[
        tuple[Compressor | OwnCompressor | Auto, ...],
        OneOf(
            {**COMPRESSORS, "auto": Auto}, "compressor", several=True, own=OwnCompressor, spelt="package.module:Class"
        ),
    ]
    policy: Annotated[Policy | OwnPolicy, OneOf(POLICIES, "policy", own=OwnPolicy, spelt="package.module:Class")] = (
        NonePolicy()
    )
    train: TrainSettings = TrainSettings()
    audit: AuditSettings = AuditSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _fold_is_used(self) -> Self:
        if self.train.fold and getattr(self.data, "held_out", "fold") != "fold":
            raise ValueError(
                f"train.fold is {self.train.fold} and data.held_out is {self.data.held_out}; "  # type: ignore[attr-defined]
                "set data.held_out=fold to cross-validate"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        shares = self.cluster.workers * self.train.accumulation_steps
        if self.train.batch_size % shares:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}, which {self.cluster.workers} workers × "
                f"{self.train.accumulation_steps} accumulation steps cannot share evenly; take a multiple of {shares}"
            )
        return self

    @property
    def rows_per_pass(self) -> int:
        """Samples of one worker in one backward pass."""
        return self.train.batch_size // (self.cluster.workers * self.train.accumulation_steps)

    @property
    def candidates(self) -> list[Compressor | Auto]:
        """The compressors, those of the user's own made."""
        return [given.build() if isinstance(given, OwnCompressor) else given for given in self.compressor]

    @property
    def decider(self) -> Policy:
        """The policy, one of the user's own made."""
        return self.policy.build() if isinstance(self.policy, OwnPolicy) else self.policy

    @property
    def values(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        values: dict[str, Any] = self.model_dump(mode="json")
        # Fields are declared by their base class; their settings are the chosen kind's.
        values["model"], values["data"] = self.model.model_dump(mode="json"), self.data.model_dump(mode="json")
        values["policy"] = self.policy.model_dump(mode="json")
        values["compressor"] = [compressor.model_dump(mode="json") for compressor in self.compressor]
        return values

    @property
    def digest(self) -> str:
        """A short hash of all settings."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:12]


class StudyConfig(Settings):
    """What a study file holds besides the settings of its cells."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    description: str = ""
    tracking: TrackingSettings = TrackingSettings()
    sweep: dict[str, list[Any]] = Field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """The MLflow experiment."""
        return self.tracking.experiment or self.name

"""Ray: start or join a cluster, and run a group of workers on the cells of one world size."""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.board import Board
from launch.config import ClusterSettings
from launch.errors import UserError, first_line
from launch.planning import PlannedCell
from launch.ray_environment import ray_address
from launch.worker import work
from models.data.cache import CACHE_VARIABLE
from models.data.files import ROOT_VARIABLE, absolute

DATA_VARIABLES = (ROOT_VARIABLE, CACHE_VARIABLE)
"""What workers are told of the driver's environment, which does not reach them by itself."""

POLL_S = 0.2
GRACE_S = 2.0
"""How long the board waits for all workers to say why a cell failed."""


@contextmanager
def cluster(settings: ClusterSettings, log: Path) -> Iterator[None]:
    """Connect to Ray, or start it here; end what was started.

    Args:
        settings: of the study's first cell.
        log: file that takes what Ray has to say.
    """
    _divert_logs(log)
    address = ray_address(settings)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cluster.address: found {address!r}; no Ray cluster could be joined or started: {first_line(error)}. "
            "Start one with `ray start --head`, or leave the address out to start one here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def leave_at_once(code: int) -> NoReturn:
    """End this process, and with it the cluster that it started or its job in the one that it joined.

    `ray.shutdown` under the thread that still waits for Ray Train makes Ray end the process itself now
    and then, with a code of its own.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check_answers(address: str) -> None:
    """Tell at once where nobody listens; Ray would try for a minute."""
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"cluster.address: found {address!r}, where nobody answers ({error.strerror or error}); allowed is the "
            "address of a running Ray cluster, such as `ray start --head` prints"
        ) from error


def _divert_logs(log: Path) -> None:
    """Send Ray's messages to a file instead of the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.train", "ray.data"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)


def check_resources(settings: ClusterSettings) -> None:
    """Refuse a group that the cluster can never place.

    Raises:
        UserError: it has too few CPUs, or too few GPUs for nccl.
    """
    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 0.0)
    needed = settings.workers * settings.cpus_per_worker
    if needed > cpus:
        most = int(cpus // settings.cpus_per_worker)
        raise UserError(
            f"cluster.workers: found {settings.workers}; allowed is at most {most}, since the Ray cluster has {cpus:g} "
            f"CPUs and each worker reserves {settings.cpus_per_worker:g}. Take fewer workers, or lower "
            "cluster.cpus_per_worker"
        )
    if settings.backend == "nccl" and resources.get("GPU", 0.0) < settings.workers:
        raise UserError(
            f"cluster.backend: found nccl, which takes one GPU a worker; the Ray cluster has "
            f"{resources.get('GPU', 0.0):g} GPUs for {settings.workers} workers. Take gloo, or fewer workers"
        )


def choose_backend(settings: ClusterSettings) -> str:
    """Nccl where every worker has a GPU, else gloo, unless the settings say."""
    if settings.backend != "auto":
        return settings.backend
    return "nccl" if ray.cluster_resources().get("GPU", 0.0) >= settings.workers else "gloo"


@dataclass
class Group:
    """A worker group at work in the background."""

    board: Any
    thread: threading.Thread
    errors: list[Exception]
    settings: ClusterSettings

    def events(self) -> Iterator[list[dict[str, Any]]]:
        """What happened since the last poll, until all cells are done or the group is lost; see `Board`."""
        placed, deadline = False, time.monotonic() + self.settings.start_timeout_s
        while self.thread.is_alive():
            yield ray.get(self.board.drain.remote(GRACE_S))
            placed = placed or ray.get(self.board.has_workers.remote())
            if not placed and time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        yield ray.get(self.board.drain.remote(0.0))
        if self.errors:
            reason = _reason(self.errors[0])
        elif not placed:
            reason = (
                f"Ray placed no worker within cluster.start_timeout_s = {self.settings.start_timeout_s:g}; the cluster "
                "is busy, or a node is gone"
            )
        else:
            reason = "the worker group ended early"
        lost = ray.get(self.board.unfinished.remote())
        trace = "".join(map(str, self.errors))
        yield [{"event": "failed", "cell": number, "message": reason, "traceback": trace} for number in lost]


def _reason(error: Exception) -> str:
    """What ended a worker group, in one line: of Ray Train's collected errors, the first worker's own."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        said = str(failure).strip().splitlines()
        return f"worker {rank}: {said[-1] if said else type(failure).__name__}"
    return first_line(error)


def start_group(cells: Sequence[PlannedCell], folder: Path) -> Group:
    """Start workers for cells of one world size; all cells share their start-up.

    Args:
        cells: with the same cluster settings.
        folder: for what Ray Train stores.
    """
    settings = cells[0].cell.config.cluster
    backend = choose_backend(settings)
    # On the driver's own node: another one may leave, and the board with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = (
        ray.remote(Board)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote([cell.cell.index for cell in cells], settings.workers)
    )
    trainer = DataParallelTrainer(
        work,
        train_loop_config={
            "board": board,
            "cells": [ray.put({cell.cell.index: cell for cell in cells})],
            "backend": backend,
            "timeout_s": settings.timeout_s,
            "environment": {name: str(absolute(os.environ[name])) for name in DATA_VARIABLES if os.environ.get(name)},
        },
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=backend == "nccl",
            resources_per_worker={"CPU": settings.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=f"gradrank-{os.getpid()}-{time.time_ns()}",
            storage_path=str(folder.absolute()),
            # Each death costs at most the cell that ran; a group that dies more often than that is sick.
            failure_config=FailureConfig(max_failures=len(cells)),
        ),
    )
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  # told by the driver, cell by cell
            errors.append(error)

    # Not in the main thread: there Ray Train would take Ctrl-C for itself.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    return Group(board, thread, errors, settings)

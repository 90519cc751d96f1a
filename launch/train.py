"""One worker's part in one cell: train, audit, evaluate, summarise."""

import contextlib
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from compress import AuditRow, CompressionState, audited_loss, register
from launch.config import CellConfig, TrainSettings
from launch.memory import peak_memory_mb, reset_peak_memory
from launch.planning import DTYPES, PlannedCell, carrying, load, sharing_of, windows_of
from models import Batch, DataError, Dataset
from models.data.loader import load_steps

logger = logging.getLogger(__name__)

Emit = Callable[[int, dict[str, float]], None]
"""Takes a step and its metrics, which may be none."""

WARM_UP_STEPS = 3
"""Steps left out of timings: DDP rebuilds its buckets after the first."""


def train_cell(planned: PlannedCell, device: torch.device, emit: Emit) -> dict[str, Any]:
    """Run a cell on this worker; the process group is set up.

    Args:
        planned: the cell, its bounds and its plan.
        device: of this worker.
        emit: called on rank 0, for each record while the cell runs.

    Returns:
        `metrics`, the `summary/…` values, and `audits`, one mapping for each audited matrix and step.
        Audits are rank 0's alone.
    """
    began = time.perf_counter()
    config = planned.cell.config
    train, rank = config.train, dist.get_rank()
    dataset = load(config)
    check_same_data(dataset, planned.digest)
    torch.manual_seed(train.seed)
    reset_peak_memory(device)
    model = config.model.build(dataset.signature).to(device, DTYPES[train.dtype])
    ddp = DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, bucket_cap_mb=train.bucket_mb
    )
    # Weights begin alike on all workers; what is drawn from here on, such as dropout's masks, must not.
    torch.manual_seed(train.seed + 1_000_003 * (rank + 1))
    audits: list[AuditRow] = []
    note = audits.extend if rank == 0 else None
    state = register(ddp, planned.plan, audit=config.audit, on_audit=note, seed=train.seed)
    optimizer = make_optimizer(ddp, train)
    steps = load_steps(
        dataset.train,
        sharing_of(config, rank),
        range(train.steps),
        windows=windows_of(config.model, dataset),
        processes=train.loader_processes,
        pinned=device.type == "cuda",
    )
    passes = [ForwardPass(ddp) for _ in range(train.accumulation_steps)]

    def evaluated(prefix: str) -> dict[str, float]:
        return evaluate(ddp, dataset, device, train.eval_batch_size, prefix)

    at_start = evaluated("eval")
    if rank == 0:
        emit(0, at_start)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    logged_at, audited, last_loss = 0, 0, float("nan")
    step_times, waits = [], []
    for step in range(1, train.steps + 1):
        started, audit_before, wait_before = time.perf_counter(), state.auditor.seconds, state.exchange.seconds
        optimizer.zero_grad()
        for number, (forward, batch) in enumerate(zip(passes, next(steps), strict=True), start=1):
            batch = batch.to(device, DTYPES[train.dtype])
            with contextlib.nullcontext() if number == train.accumulation_steps else ddp.no_sync():
                loss = dataset.task.loss(forward(batch), *batch.targets) / train.accumulation_steps
                loss.backward()
            loss_sum += loss.detach()
        if state.finite:
            optimizer.step()
        else:
            warn_of_nonfinite(step, state.nonfinite_steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else only launches would be timed
        step_times.append(time.perf_counter() - started - (state.auditor.seconds - audit_before))
        waits.append(state.exchange.seconds - wait_before)

        metrics = {}
        if step % train.log_every == 0 or step == train.steps:
            last_loss = mean_over_workers(loss_sum) / (step - logged_at)
            loss_sum.zero_()
            logged_at = step
            metrics["train/loss"] = last_loss
        if step % train.eval_every == 0 and step < train.steps:
            metrics |= evaluated("eval")
        if len(audits) > audited:
            metrics |= audit_metrics(audits[audited:], state)
            audited = len(audits)
        if metrics and rank == 0:
            emit(step, metrics)

    held_out = evaluated("summary")
    if rank == 0:
        emit(train.steps, {key.replace("summary/", "eval/"): value for key, value in held_out.items()})
    summary = held_out | {"summary/train_loss": last_loss}
    summary |= {key.replace("eval/", "summary/initial_"): value for key, value in at_start.items()}
    summary |= communication_summary(planned, state, train.steps)
    summary |= timing_summary(config, step_times, waits, state)
    summary |= audit_summary(audits)
    summary["summary/nonfinite_steps"] = float(state.nonfinite_steps)
    summary["summary/peak_memory_mb"] = peak_memory_mb(device)
    summary["summary/seconds"] = time.perf_counter() - began
    return {"metrics": summary, "audits": [asdict(row) for row in audits]}


def warn_of_nonfinite(step: int, so_far: int) -> None:
    """Say once in a cell, on one worker, that a step was skipped."""
    if so_far == 1 and dist.get_rank() == 0:
        logger.warning(
            "step %d: a gradient holds NaN or infinity, so weights stay as they are; summary/nonfinite_steps counts "
            "such steps. A smaller learning rate may help",
            step,
        )


def make_optimizer(model: torch.nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    if train.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


class ForwardPass:
    """Calls the network; one that carries a state goes on from where it left the steps before."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model
        self._state: tuple[Tensor, ...] = ()

    def __call__(self, batch: Batch) -> Tensor:
        if not batch.windowed:
            output: Tensor = self._model(*batch.inputs)
            return output
        if batch.begins:
            self._state = carrying(self._model.module).initial_state(len(batch))
        output, *state = self._model(*batch.inputs, *self._state)
        # Truncated backpropagation through time: the state goes on, its gradient does not.
        self._state = tuple(part.detach() for part in state)
        return output


def check_same_data(dataset: Dataset, planned: str) -> None:
    """Refuse to train on other data than were planned for, as where a machine has other files.

    Args:
        dataset: this worker's.
        planned: the digest of the driver's.

    Raises:
        DataError: a worker's differ; on all workers, so that none waits for another.
    """
    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, dataset.digest)
    for rank, digest in enumerate(digests):
        if digest != planned:
            raise DataError(
                f"data {dataset.name} differ: the study was planned for {planned or 'none'}, worker {rank} has "
                f"{digest or 'none'}; put the same files on every machine"
            )


def mean_over_workers(value: Tensor) -> float:
    """Average a scalar over all workers; outside the exchange, since it is no gradient."""
    total = value.detach().to(torch.float64, copy=True)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


@torch.no_grad()
def evaluate(
    model: DistributedDataParallel, dataset: Dataset, device: torch.device, batch_size: int, prefix: str
) -> dict[str, float]:
    """Loss and metric on all held-out samples, each worker taking its share, exact for uneven shares."""
    dtype = next(model.parameters()).dtype
    for buffer in model.buffers():  # running statistics are each worker's own until its next forward pass
        dist.broadcast(buffer, 0)
    model.eval()
    share = torch.arange(len(dataset.test))[dist.get_rank() :: dist.get_world_size()]
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for part in share.split(batch_size) if len(share) else ():  # there may be fewer samples than workers
        batch = dataset.test.take(part).to(device, dtype)
        sums += dataset.task.sums(model.module(*batch.inputs), *batch.targets)
    model.train()
    dist.all_reduce(sums)
    loss, metric = dataset.task.summarise(sums)
    return {f"{prefix}/loss": loss, f"{prefix}/{dataset.task.metric}": metric}


def audit_metrics(rows: list[AuditRow], state: CompressionState) -> dict[str, float]:
    """What one audited step showed, and what the plan sends since."""
    loss = audited_loss(rows)
    return {
        "audit/information_loss": loss.information_loss,
        "audit/compression_error": loss.compression_error,
        "audit/unavoidable_error": loss.unavoidable_error,
        "audit/measured_rank": float(max(row.measured_rank for row in rows)),
        "audit/bound_violations": float(state.bound_violations),
        "audit/plan_bytes": float(state.plan.bytes),
    }


def communication_summary(planned: PlannedCell, state: CompressionState, steps: int) -> dict[str, float]:
    """Bytes of one worker, counted; and the ratio to what dense would have cost."""
    plan, exchange = planned.plan, state.exchange
    dense = plan.dense
    # On one worker nothing goes over a wire; what is handed to collectives is compared instead.
    alone = plan.world_size == 1
    ratio = dense.bytes * steps / exchange.bytes if alone else dense.wire_bytes * steps / exchange.wire_bytes
    return {
        "summary/bytes_per_step": exchange.bytes / steps,
        "summary/wire_bytes_per_step": exchange.wire_bytes / steps,
        "summary/compression_ratio": ratio,
    }


def timing_summary(
    config: CellConfig, step_times: list[float], waits: list[float], state: CompressionState
) -> dict[str, float]:
    """Median step and communication times without audits, and the time of audits over that of training."""
    steady = step_times[WARM_UP_STEPS:] or step_times
    step_time = statistics.median(steady)
    return {
        "summary/step_time_ms": 1000 * step_time,
        "summary/communication_ms": 1000 * statistics.median(waits[WARM_UP_STEPS:] or waits),
        "summary/samples_per_second": config.train.batch_size / step_time,
        "summary/audit_share": state.auditor.seconds / sum(step_times),
    }


def audit_summary(audits: list[AuditRow]) -> dict[str, float]:
    """What all audited steps showed; empty without audits."""
    if not audits:
        return {}
    by_step: dict[int, list[AuditRow]] = {}
    for row in audits:
        by_step.setdefault(row.step, []).append(row)
    losses = [audited_loss(rows) for rows in by_step.values()]
    summary = {
        "summary/information_loss": statistics.fmean(loss.information_loss for loss in losses),
        "summary/compression_error": statistics.fmean(loss.compression_error for loss in losses),
        "summary/unavoidable_error": statistics.fmean(loss.unavoidable_error for loss in losses),
        "summary/iteration_error": statistics.fmean(loss.iteration_error for loss in losses),
        "summary/measured_rank": float(max(row.measured_rank for row in audits)),
    }
    bounded = [(row, row.bound) for row in audits if row.bound is not None]
    if bounded:
        summary["summary/bound"] = float(max(bound for _, bound in bounded))
        summary["summary/bound_tightness"] = statistics.fmean(
            row.measured_rank / bound for row, bound in bounded if bound
        )
        summary["summary/bound_violations"] = float(sum(row.violated for row, _ in bounded))
    return summary

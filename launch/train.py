"""One worker's part in one cell: train, audit, evaluate, summarise."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from compress import AuditRow, CompressionState, audited_loss, register
from launch.config import CellConfig, TrainSettings
from launch.memory import peak_memory_mb, reset_peak_memory
from launch.planning import DTYPES, PlannedCell, load
from models import Dataset, Samples

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
    config = planned.cell.config
    train, rank = config.train, dist.get_rank()
    dataset = load(config.data, train.fold)
    torch.manual_seed(train.seed)
    reset_peak_memory(device)
    model = config.model.build(dataset.inputs, dataset.outputs).to(device, DTYPES[train.dtype])
    ddp = DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, bucket_cap_mb=train.bucket_mb
    )
    state = register(ddp, planned.plan, audit=config.audit, seed=train.seed)
    optimizer = make_optimizer(ddp, train)
    batches = micro_batches(dataset.train, config, rank, device)

    loss_sum = torch.zeros((), device=device)
    logged_at, audited, last_loss = 0, 0, float("nan")
    step_times, waits = [], []
    for step in range(1, train.steps + 1):
        started, audit_before, wait_before = time.perf_counter(), state.audit_seconds, state.exchange.seconds
        optimizer.zero_grad()
        for number in range(train.accumulation_steps):
            samples = next(batches)
            last = number == train.accumulation_steps - 1
            with contextlib.nullcontext() if last else ddp.no_sync():
                loss = dataset.task.loss(ddp(samples.inputs), samples.targets) / train.accumulation_steps
                loss.backward()
            loss_sum += loss.detach()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # else only launches would be timed
        step_times.append(time.perf_counter() - started - (state.audit_seconds - audit_before))
        waits.append(state.exchange.seconds - wait_before)

        metrics = {}
        if step % train.log_every == 0 or step == train.steps:
            last_loss = mean_over_workers(loss_sum) / (step - logged_at)
            loss_sum.zero_()
            logged_at = step
            metrics["train/loss"] = last_loss
        if step % train.eval_every == 0 and step < train.steps:
            metrics |= evaluate(ddp, dataset, device, prefix="eval")
        if len(state.audits) > audited:
            metrics |= audit_metrics(state.audits[audited:])
            audited = len(state.audits)
        if metrics and rank == 0:
            emit(step, metrics)

    held_out = evaluate(ddp, dataset, device, prefix="summary")
    if rank == 0:
        emit(train.steps, {key.replace("summary/", "eval/"): value for key, value in held_out.items()})
    summary = held_out | {"summary/train_loss": last_loss}
    summary |= communication_summary(planned, state, train.steps)
    summary |= timing_summary(config, step_times, waits, state)
    summary |= audit_summary(state.audits)
    summary["summary/peak_memory_mb"] = peak_memory_mb(device)
    return {"metrics": summary, "audits": [asdict(row) for row in state.audits]}


def make_optimizer(model: torch.nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings name."""
    if train.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def micro_batches(train: Samples, config: CellConfig, rank: int, device: torch.device) -> Iterator[Samples]:
    """This worker's share of each backward pass, for ever: a new order of the samples each epoch.

    The order depends on the seed alone, so that a step sees the same samples on any number of workers.
    """
    samples = train.to(device, DTYPES[config.train.dtype])
    size, rows, generator = config.train.batch_size, config.rows_per_pass, torch.Generator()
    epoch = 0
    while True:
        order = torch.randperm(len(samples), generator=generator.manual_seed(config.train.seed * 1_000_003 + epoch))
        for start in range(0, len(samples) - size + 1, size):
            mine = order[start : start + size][rank :: config.cluster.workers]
            for part in mine.split(rows):
                yield samples.take(part.to(device))
        epoch += 1


def mean_over_workers(value: torch.Tensor) -> float:
    """Average a scalar over all workers; outside the exchange, since it is no gradient."""
    total = value.detach().to(torch.float32).clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


@torch.no_grad()
def evaluate(model: DistributedDataParallel, dataset: Dataset, device: torch.device, prefix: str) -> dict[str, float]:
    """Loss and metric on all held-out samples, each worker taking its share, exact for uneven shares."""
    dtype = next(model.parameters()).dtype
    model.eval()
    share = torch.arange(dist.get_rank(), len(dataset.test), dist.get_world_size())
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for part in share.split(4096):
        samples = dataset.test.take(part).to(device, dtype)
        sums += dataset.task.sums(model.module(samples.inputs), samples.targets)
    model.train()
    dist.all_reduce(sums)
    loss, metric = dataset.task.summarise(sums)
    return {f"{prefix}/loss": loss, f"{prefix}/{dataset.task.metric}": metric}


def audit_metrics(rows: list[AuditRow]) -> dict[str, float]:
    """What one audited step showed."""
    return {
        "audit/information_loss": audited_loss(rows).information_loss,
        "audit/measured_rank": float(max(row.measured_rank for row in rows)),
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
        "summary/audit_share": state.audit_seconds / sum(step_times),
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

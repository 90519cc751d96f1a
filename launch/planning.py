"""What a cell will do, known before it starts: its bounds, its plan, its bytes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from typing import Any, Protocol, cast

import torch
from torch import nn

from compress import Bounds, Plan, TraceError, make_plan, rank_bounds
from launch.config import CellConfig
from launch.errors import UserError
from launch.study import Cell
from models import DataConfig, DataError, Dataset, ModelConfig, load_for
from models.data.loader import Sharing, check_sharing

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PlannedCell:
    """A cell with everything that is decided on the driver and handed to the workers.

    Attributes:
        cell: number, name and settings.
        bounds: of its network at its batch shape.
        plan: how each gradient is sent.
        digest: of the data.
    """

    cell: Cell
    bounds: Bounds
    plan: Plan
    digest: str


def plan_cell(cell: Cell) -> PlannedCell:
    """Bound and plan one cell; the network is traced on the meta device.

    Raises:
        UserError: the data cannot serve the settings, or the plan is refused.
    """
    bounds = bound_cell(cell)
    config = cell.config
    try:
        plan = make_plan(
            network_of(cell),
            config.candidates,
            config.decider,
            bounds=bounds,
            world_size=config.cluster.workers,
            network=config.cluster.network,
        )
    except ValueError as error:
        raise UserError(f"{cell.name}: {error}") from error
    if not plan:
        raise UserError(f"{cell.name}: model {config.model.kind} trains no parameter; one or more is expected")
    return PlannedCell(cell, bounds, plan, load(config).digest)


def bound_cell(cell: Cell) -> Bounds:
    """Bound a cell's network at its batch shape.

    Raises:
        UserError: the data cannot serve the settings, or the network cannot be traced.
    """
    config = cell.config
    try:
        dataset = load(config)
        check_sharing(dataset.train, sharing_of(config, rank=0))  # shares are all as large
        return _bounds(
            config.model,
            config.data,
            config.train.fold,
            config.train.dtype,
            config.rows_per_pass,
            config.cluster.workers,
            config.train.accumulation_steps,
        )
    except (TraceError, ValueError) as error:
        raise UserError(f"{cell.name}: {error}") from error


def network_of(cell: Cell) -> nn.Module:
    """A cell's network, without memory for its weights."""
    config = cell.config
    return _on_meta(config.model, load(config), DTYPES[config.train.dtype])


def load(config: CellConfig) -> Dataset:
    """Load a cell's data.

    Raises:
        DataError: the files cannot be read, or do not serve the network.
    """
    return load_for(config.model, config.data, config.train.fold)


def sharing_of(config: CellConfig, rank: int) -> Sharing:
    """How a worker shares the steps of a cell."""
    return Sharing(
        batch_size=config.train.batch_size,
        accumulation_steps=config.train.accumulation_steps,
        world_size=config.cluster.workers,
        rank=rank,
        partition=config.data.partition,
        seed=config.train.seed,
    )


def windows_of(model: ModelConfig, dataset: Dataset) -> list[tuple[int, int]]:
    """First and last step (exclusive) of the windows that series are trained in; none for whole ones."""
    if dataset.signature.kind != "series" or model.length in (None, dataset.signature.shape[0]):
        return []
    return [(start, start + model.length) for start in range(0, dataset.signature.shape[0], model.length)]


class Carrying(Protocol):
    """A recurrent network that can go on from a state."""

    def initial_state(self, rows: int) -> tuple[torch.Tensor, ...]:
        """The state before the first step."""


def carrying(network: nn.Module) -> Carrying:
    """The network as one that can go on from a state.

    Raises:
        DataError: it has no such state.
    """
    if not hasattr(network, "initial_state"):
        raise DataError(
            f"model.sequence_length cuts series into windows, and {type(network).__name__} carries no state from one "
            "to the next; give it a method initial_state(rows), or leave sequence_length out"
        )
    return cast(Carrying, network)


@lru_cache(maxsize=256)
def _bounds(
    model: ModelConfig, data: DataConfig, fold: int, dtype: str, rows: int, workers: int, accumulation_steps: int
) -> Bounds:
    """Bounds depend on these settings alone, so that cells which share them are traced once."""
    dataset = load_for(model, data, fold)
    batch = dataset.train.take(torch.arange(rows))
    network = _on_meta(model, dataset, DTYPES[dtype])
    windows = windows_of(model, dataset)
    state: tuple[torch.Tensor, ...] = ()
    if windows:
        # Of a window in mid-series: from a state that may be any, no fewer directions than from zeros.
        with torch.device("meta"):
            state = carrying(network).initial_state(rows)
        batch = batch.window(*windows[0])

    def loss(output: Any, *targets: torch.Tensor) -> torch.Tensor:
        if windows and not isinstance(output, tuple):
            raise TraceError(
                f"{type(network).__name__} gave no tuple where it was given a state; (output, *state) is expected"
            )
        return dataset.task.loss(output[0] if windows else output, *targets)

    batch = batch.to(torch.device("meta"), DTYPES[dtype])
    with quiet_tracing():
        return rank_bounds(
            network,
            (*batch.inputs, *state),
            loss=loss,
            targets=batch.targets,
            world_size=workers,
            accumulation_steps=accumulation_steps,
            input_rank=None if state else dataset.input_rank,  # it would be taken to hold of the state too
        )


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep torch.export from printing tracebacks and whole graphs: its error tells what users need."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # its handler keeps the standard error that it found at its start
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def _on_meta(model: ModelConfig, dataset: Dataset, dtype: torch.dtype) -> nn.Module:
    """Build the network without memory for its weights."""
    with torch.device("meta"):
        return model.build(dataset.signature).to(dtype)

"""What a cell will do, known before it starts: its bounds, its plan, its bytes."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from compress import Bounds, Plan, TraceError, make_plan, rank_bounds
from launch.errors import UserError
from launch.study import Cell
from models import DataConfig, Dataset, ModelConfig

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class PlannedCell:
    """A cell with everything that is decided on the driver and handed to the workers.

    Attributes:
        cell: number, name and settings.
        bounds: of its network at its batch shape.
        plan: how each gradient is sent.
    """

    cell: Cell
    bounds: Bounds
    plan: Plan


def plan_cell(cell: Cell) -> PlannedCell:
    """Bound and plan one cell; the network is traced on the meta device.

    Raises:
        UserError: the data cannot serve the settings, or the plan is refused.
    """
    bounds = bound_cell(cell)
    config = cell.config
    try:
        plan = make_plan(
            network_of(cell), config.compressor, config.policy, bounds=bounds, world_size=config.cluster.workers
        )
    except ValueError as error:
        raise UserError(f"{cell.name}: {error}") from error
    return PlannedCell(cell, bounds, plan)


def bound_cell(cell: Cell) -> Bounds:
    """Bound a cell's network at its batch shape.

    Raises:
        UserError: the data cannot serve the settings, or the network cannot be traced.
    """
    config = cell.config
    dataset = load(config.data, config.train.fold)
    if config.train.batch_size > len(dataset.train):
        raise UserError(
            f"{cell.name}: train.batch_size is {config.train.batch_size}, more than the {len(dataset.train)} training "
            f"samples of {dataset.name}; take {len(dataset.train)} or less"
        )
    try:
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
    return _on_meta(config.model, load(config.data, config.train.fold), DTYPES[config.train.dtype])


@lru_cache(maxsize=8)
def load(data: DataConfig, fold: int) -> Dataset:
    """Load a data set, and keep it for the next cell that has the same."""
    return data.load(fold)


@lru_cache(maxsize=256)
def _bounds(
    network: ModelConfig, data: DataConfig, fold: int, dtype: str, rows: int, workers: int, accumulation_steps: int
) -> Bounds:
    """Bounds depend on these settings alone, so that cells which share them are traced once."""
    dataset = load(data, fold)
    batch = dataset.train.take(torch.arange(rows)).to(torch.device("meta"), DTYPES[dtype])
    return rank_bounds(
        _on_meta(network, dataset, DTYPES[dtype]),
        (batch.inputs,),
        loss=dataset.task.loss,
        targets=(batch.targets,),
        world_size=workers,
        accumulation_steps=accumulation_steps,
        input_rank=dataset.input_rank,
    )


def _on_meta(network: ModelConfig, dataset: Dataset, dtype: torch.dtype) -> nn.Module:
    """Build the network without memory for its weights."""
    with torch.device("meta"):
        return network.build(dataset.inputs, dataset.outputs).to(dtype)

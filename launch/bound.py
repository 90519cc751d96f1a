"""Which networks `gradrank bound` is asked about, and their bounds."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from compress import Bounds, TraceError, rank_bounds
from compress.matrix import named_matrices, unwrapped
from launch.errors import UserError
from launch.own_model import load_own_model
from launch.planning import bound_cell, network_of, quiet_tracing
from launch.study import Cell, read_study, single_cell
from models import MODELS, DataConfig, ModelConfig
from models.own import is_own
from models.spelling import nearest


class Sizes(NamedTuple):
    """What rows are counted from; None where it was not given."""

    batch_size: int | None = None
    workers: int | None = None
    accumulation_steps: int | None = None


@dataclass(frozen=True)
class BoundedNetwork:
    """A network and its bounds.

    Attributes:
        title: what it is and what it is bounded for.
        model: itself; on the meta device, if it is a built-in one.
        bounds: of all its matrices.
        itemsizes: bytes of a number, for each matrix that is trained.
        vectors: bytes of the gradients of biases and other vectors.
        cells: names of the study's cells that share it.
    """

    title: str
    model: nn.Module
    bounds: Bounds
    itemsizes: dict[str, int]
    vectors: int
    cells: tuple[str, ...] = ()


def networks_of(
    config: Path | None, model: str | None, data: str | None, sizes: Sizes, overrides: Sequence[str]
) -> list[BoundedNetwork]:
    """The networks of a study file, or a built-in one, or one of the user's own code.

    Raises:
        UserError: what was given does not go together, or cannot be bounded.
    """
    if config is not None:
        for option, value in (("--model", model), ("--data", data)):
            if value is not None:
                raise UserError(f"{option} {value}: {config} names its own; change it by --set {option[2:]}={value}")
        return _study(config, sizes, overrides)
    if is_own(model) and data is None:
        for option, given in (("--batch-size", sizes.batch_size), ("--set", overrides)):
            if given:
                raise UserError(
                    f"{option}: found beside --model {model}, which makes its own inputs; leave it out, or name --data "
                    "for a function that takes the data's signature"
                )
        return [_own(str(model), sizes)]
    return [_built_in(model or "mlp", data or "digits", sizes, overrides)]


def _built_in(model: str, data: str, sizes: Sizes, overrides: Sequence[str]) -> BoundedNetwork:
    if model not in MODELS and not is_own(model):
        raise UserError(
            f"--model: found {model!r}; allowed are {', '.join(MODELS)}, or package.module:function for a network of "
            f"your own{nearest(model, MODELS)}"
        )
    given = {key: value for key, value in sizes._asdict().items() if value is not None}
    workers = given.pop("workers", 1)
    values: dict[str, Any] = {
        "model": model,
        "data": data,
        "compressor": "dense",
        "train": given,
        "cluster": {"workers": workers},
    }
    return _cell_network(single_cell(values, overrides))


def _study(path: Path, sizes: Sizes, overrides: Sequence[str]) -> list[BoundedNetwork]:
    keys = {"batch_size": "train", "workers": "cluster", "accumulation_steps": "train"}
    given = [f"{keys[key]}.{key}={value}" for key, value in sizes._asdict().items() if value is not None]
    alike: dict[object, list[Cell]] = {}
    for cell in read_study(path, [*given, *overrides]).cells:
        alike.setdefault(_likeness(cell), []).append(cell)
    return [_cell_network(cells[0], tuple(cell.name for cell in cells)) for cells in alike.values()]


def _likeness(cell: Cell) -> object:
    """What bounds depend on; folds share shapes and what is known of the data."""
    config = cell.config
    train = config.train
    return config.model, config.data, train.dtype, train.batch_size, train.accumulation_steps, config.cluster.workers


def _cell_network(cell: Cell, cells: tuple[str, ...] = ()) -> BoundedNetwork:
    config = cell.config
    title = f"{_knobs(config.model)} on {_knobs(config.data)}: {_counted(config.train.batch_size, 'sample')}"
    bounds = bound_cell(cell)
    return _network(f"{title}, {_passes(bounds)}", network_of(cell), bounds, cells)


def _own(given: str, sizes: Sizes) -> BoundedNetwork:
    for option, count in (("--workers", sizes.workers), ("--accumulation-steps", sizes.accumulation_steps)):
        if count is not None and count < 1:
            raise UserError(f"{option}: found {count}; allowed is 1 or more")
    with redirect_stdout(sys.stderr):  # what the user's code prints is no part of the answer
        fields = load_own_model(given)
    model, args = fields.pop("model"), fields.pop("args")
    fields |= {"world_size": sizes.workers or 1, "accumulation_steps": sizes.accumulation_steps or 1}
    try:
        with quiet_tracing():
            bounds = rank_bounds(model, args, **fields)
    except (TraceError, ValueError) as error:
        raise UserError(f"--model {given}: {' '.join(str(error).split())}") from error
    return _network(f"{given}: {_passes(bounds)}", model, bounds)


def _network(title: str, model: nn.Module, bounds: Bounds, cells: tuple[str, ...] = ()) -> BoundedNetwork:
    trained = [(name, weight) for name, weight in named_matrices(unwrapped(model)) if weight.requires_grad]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2 and weight.requires_grad]
    return BoundedNetwork(
        title,
        model,
        bounds,
        {name: weight.element_size() for name, weight in trained},
        sum(weight.numel() * weight.element_size() for weight in vectors),
        cells,
    )


def _knobs(config: ModelConfig | DataConfig) -> str:
    """A kind with the settings that are not the default's."""
    knobs = config.model_dump(exclude_defaults=True, exclude={"kind"})
    return config.kind + (f" ({', '.join(f'{key} {value}' for key, value in knobs.items())})" if knobs else "")


def _passes(bounds: Bounds) -> str:
    passes = _counted(bounds.world_size, "worker")
    steps = bounds.accumulation_steps
    return passes if steps == 1 else f"{passes}, {_counted(steps, 'accumulation step')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

"""Networks as `models` makes them by their knobs: bounds, and ranks of gradients measured in float64."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from measured import gradients, rank
from torch import Tensor, nn

from compress import Bounds, rank_bounds
from launch.planning import bound_cell, load, windows_of
from launch.study import single_cell
from models import Batch, ModelConfig, Regression, Signature, Task

FLOAT64 = torch.device("cpu"), torch.float64


class Ranks(NamedTuple):
    """Of one weight: its bound, the bound if activations were linear, and the rank found."""

    bound: int
    linear: int
    measured: int


def ranks(
    model: ModelConfig,
    signature: Signature,
    rows: int,
    task: Task | None = None,
    *,
    passes: int = 1,
    carried: bool = False,
) -> dict[str, Ranks]:
    """Bound and measure on normal samples and random targets.

    Args:
        model: the network.
        signature: of the samples.
        rows: samples of a pass.
        task: regression where left out.
        passes: accumulation steps.
        carried: whether a recurrent network goes on from a state.
    """
    torch.manual_seed(0)
    task = task or Regression()
    network = generic(model.build(signature))
    batches = [_draw(network, signature, rows, task, carried) for _ in range(passes)]
    loss = _of_first(task) if carried else task.loss
    inputs, targets = batches[0].inputs, batches[0].targets
    bounds = rank_bounds(network, inputs, loss=loss, targets=targets, accumulation_steps=passes)
    return _measured(network, bounds, batches, loss)


def ranks_of_settings(**settings: Any) -> dict[str, Ranks]:
    """Bound a cell by its settings, as a user gives them, and measure on its own data."""
    torch.manual_seed(0)
    values = {"compressor": "dense", "cluster": {"workers": 1}} | settings
    config = (cell := single_cell(values)).config
    bounds, dataset = bound_cell(cell), load(config)
    network = generic(config.model.build(dataset.signature))
    passes = config.cluster.workers * config.train.accumulation_steps
    taken = torch.arange(config.rows_per_pass * passes).split(config.rows_per_pass)
    batches = [dataset.train.take(numbers).to(*FLOAT64) for numbers in taken]
    windows = windows_of(config.model, dataset)
    if windows:
        batches = [_second_window(network, batch, windows) for batch in batches]
    return _measured(network, bounds, batches, _of_first(dataset.task) if windows else dataset.task.loss)


def generic(network: nn.Module) -> nn.Module:
    """In float64, with biases and norms that are not zeros and ones."""
    for name, parameter in network.double().named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0)
    return network


def _draw(network: Any, signature: Signature, rows: int, task: Task, carried: bool) -> Batch:
    inputs: tuple[Tensor, ...]
    if signature.vocabulary:
        inputs = (torch.randint(0, signature.vocabulary, (rows, *signature.shape)),)
    else:
        inputs = (torch.randn(rows, *signature.shape, dtype=torch.float64),)
    if signature.kind == "pairs":
        languages = torch.randint(0, signature.languages, inputs[0].shape)
        inputs += torch.ones_like(languages), languages, torch.arange(signature.shape[0]).expand_as(languages)
    if carried:
        inputs += tuple(torch.randn_like(part) for part in network.initial_state(rows))
    shape = (rows, signature.shape[0]) if signature.each_step else (rows,)
    if isinstance(task, Regression):
        return Batch(inputs, (torch.randn(*shape, signature.outputs, dtype=torch.float64),))
    return Batch(inputs, (torch.randint(0, signature.outputs, shape),))


def _second_window(network: Any, batch: Batch, windows: Sequence[tuple[int, int]]) -> Batch:
    """The second window, from the state in which the first left the network."""
    first, second = (batch.window(*window) for window in windows[:2])
    _, *state = network(*first.inputs, *network.initial_state(len(batch)))
    return Batch((*second.inputs, *(part.detach() for part in state)), second.targets)


def _of_first(task: Task) -> Callable[..., Tensor]:
    return lambda output, *targets: task.loss(output[0], *targets)


def _measured(
    network: nn.Module, bounds: Bounds, batches: Sequence[Batch], loss: Callable[..., Tensor]
) -> dict[str, Ranks]:
    assert not bounds.unknown_ops
    passes = [lambda net, batch=batch: loss(net(*batch.inputs), *batch.targets) for batch in batches]
    found = {name: rank(matrix) for name, matrix in gradients(network, passes).items()}
    broken = {name: (found[name], bounds[name].rank) for name in bounds if found[name] > bounds[name].rank}
    assert not broken, f"measured ranks above their bounds: {broken}"
    return {name: Ranks(bound.rank, bound.linear_rank, found[name]) for name, bound in bounds.items()}


def reached(found: Mapping[str, Ranks]) -> dict[str, int | tuple[int, int]]:
    """Bounds that were reached, by weight; the others as (bound, measured), which equals no number."""
    return {name: r.bound if r.bound == r.measured else (r.bound, r.measured) for name, r in found.items()}

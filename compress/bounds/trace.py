"""From a network and a loss to one functional graph of ATen ops."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

Loss = Callable[..., Tensor]


class TraceError(ValueError):
    """The network could not be traced."""


class _Objective(nn.Module):
    """The network and its loss as one module: the loss if there is one, else every output."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]) -> Any:
        output = self.model(*args, **kwargs)
        if self.loss is not None:
            return self.loss(output, *targets)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor):
            return own
        return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set training or evaluation mode, and put back each module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Loss | None,
    targets: Sequence[Any],
    training: bool,
) -> ExportedProgram:
    """Export the network with its loss, functionalised, and leave the network as it was.

    Raises:
        TraceError: `torch.export` cannot trace it, or the loss is not a scalar.
    """
    objective = _Objective(model, loss)
    with _mode(model, training):
        try:
            exported: ExportedProgram = torch.export.export(
                objective, (tuple(args), dict(kwargs), tuple(targets)), strict=False
            ).run_decompositions({})
        except Exception as error:  # torch.export raises errors of many kinds; each is told and chained
            raise TraceError(
                f"torch.export cannot trace {type(model).__name__}: {type(error).__name__}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}. Check that the model "
                "runs on the given args, and that its control flow does not depend on values of tensors"
            ) from error
    if loss is not None:
        (outputs,) = exported.graph.find_nodes(op="output")[0].args
        shapes = [tuple(node.meta["val"].shape) for node in outputs if isinstance(node, fx.Node)]
        if shapes != [()]:
            raise TraceError(f"loss(output, *targets) must give one scalar, it gave tensors of shapes {shapes}")
    _drop_trivial_broadcasts(exported.graph)
    return exported


def _drop_trivial_broadcasts(graph: fx.Graph) -> None:
    """Put the operand itself where broadcast_tensors leaves its shape as it is."""
    for node in list(graph.find_nodes(op="call_function", target=operator.getitem)):
        broadcast, index = node.args
        if isinstance(broadcast, fx.Node) and broadcast.target is torch.ops.aten.broadcast_tensors.default:
            operands: Any = broadcast.args[0]
            operand = operands[index]
            if operand.meta["val"].shape == node.meta["val"].shape:
                node.replace_all_uses_with(operand)
                graph.erase_node(node)


def user_inputs(exported: ExportedProgram, inputs: Any) -> dict[str, Tensor]:
    """Pair each placeholder of a tensor input with the tensor that was given for it."""
    names = [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    leaves = pytree.tree_leaves(inputs)
    return {name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}

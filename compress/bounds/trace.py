"""From a network and a loss to one functional graph of ATen ops."""

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree

Loss = Callable[..., Tensor]


class TraceError(ValueError):
    """The network could not be traced."""


class LossError(TraceError):
    """The loss is not a scalar."""


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


@contextmanager
def _visible_backward(model: nn.Module) -> Iterator[None]:
    """Refuse what changes gradients where the graph does not show it.

    A traced graph holds forward ops alone; the rules supply their derivatives. Hooks and functions with
    a backward of their own would make those wrong, and a bound too small.
    """
    for kind, owners in (("module", model.named_modules()), ("parameter", model.named_parameters())):
        for name, owner in owners:
            if getattr(owner, "_backward_hooks", None) or getattr(owner, "_backward_pre_hooks", None):
                raise TraceError(
                    f"{kind} {name!r} has a backward hook, which can change gradients unseen; remove it, or bound the "
                    "network before hooks are registered"
                )

    def refuse(what: str) -> Callable[..., Any]:
        def raise_error(*args: Any, **kwargs: Any) -> Any:
            raise TraceError(
                f"the forward pass calls {what}, whose backward the graph does not show; bound the network without it"
            )

        return raise_error

    apply = torch.autograd.Function.apply.__func__  # type: ignore[attr-defined]
    refused = refuse("a torch.autograd.Function")

    def of_custom_ops(function: type, *args: Any, **kwargs: Any) -> Any:
        # torch.library makes such functions for custom ops: the graph has the op, and a rule or none for it.
        return apply(function, *args, **kwargs) if function.__name__.startswith("GeneratedBackwardFor_") else refused()

    with (
        mock.patch.object(torch.autograd.Function, "apply", classmethod(of_custom_ops)),
        mock.patch.object(Tensor, "register_hook", refuse("Tensor.register_hook")),
    ):
        yield


@contextmanager
def _where(model: nn.Module) -> Iterator[list[str]]:
    """The modules that are running, innermost last, where an error stops them."""
    names = {id(module): f"{name} ({type(module).__name__})" for name, module in model.named_modules()}
    names[id(model)] = type(model).__name__
    running = [type(model).__name__]

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in names:
            running.append(names[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in names:
            running.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Loss | None,
    targets: Sequence[Any],
    training: bool,
) -> tuple[ExportedProgram, dict[str, nn.Parameter]]:
    """Export the network with its loss, functionalised, and leave the network as it was.

    Returns:
        The program, and the parameter behind each placeholder, those of a loss module included.

    Raises:
        TraceError: `torch.export` cannot trace it, the loss is not a scalar, or something changes
            gradients unseen.
    """
    objective = _Objective(model, loss)
    with _mode(model, training), _visible_backward(objective), _where(model) as running, warnings.catch_warnings():
        try:
            # torch tells that it copies the weights of nn.GRU and nn.LSTM, which changes nothing here.
            warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights")
            exported: ExportedProgram = torch.export.export(
                objective, (tuple(args), dict(kwargs), tuple(targets)), strict=False
            )
            _detach_where_no_gradients_are_kept(exported)
            exported = exported.run_decompositions({})
        except TraceError:
            raise
        except Exception as error:  # torch.export raises errors of many kinds; each is told and chained
            message = (str(error).strip().splitlines() or ["no message"])[0]
            raise TraceError(
                f"torch.export cannot trace {running[-1]}: {type(error).__name__}: {message}. Check that the "
                f"model runs "
                "on the given args, and that its control flow does not depend on values of tensors; or pass "
                "untraceable='shape' to bound it by its shapes alone"
            ) from error
    if loss is not None:
        shapes = [tuple(node.meta["val"].shape) for node in user_outputs(exported)]
        if shapes != [()]:
            raise LossError(f"loss(output, *targets) must give one scalar, it gave tensors of shapes {shapes}")
    _drop_trivial_broadcasts(exported.graph)
    parameters = dict(objective.named_parameters(remove_duplicate=False))
    signature = exported.graph_signature.inputs_to_parameters
    return exported, {placeholder: parameters[name] for placeholder, name in signature.items()}


def _detach_where_no_gradients_are_kept(exported: ExportedProgram) -> None:
    """Detach what a `torch.no_grad` block computes: decomposing puts the block's ops among the others."""
    for module in exported.graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in list(module.graph.nodes):
            if getattr(node.target, "__name__", "") != "wrap_with_set_grad_enabled" or node.args[0]:
                continue
            block = getattr(module, node.args[1].target)
            for inner in block.modules():
                for call in list(inner.graph.nodes) if isinstance(inner, fx.GraphModule) else ():
                    if getattr(call.target, "__name__", "") == "wrap_with_set_grad_enabled" and call.args[0]:
                        raise TraceError("torch.enable_grad within torch.no_grad cannot be followed; use detach()")
            for user in list(node.users):
                value = user.meta.get("val")
                if user.target is operator.getitem and isinstance(value, Tensor):
                    with module.graph.inserting_after(user):
                        detached = module.graph.call_function(torch.ops.aten.detach.default, (user,))
                    detached.meta = dict(user.meta)
                    user.replace_all_uses_with(detached, delete_user_cb=lambda other, kept=detached: other is not kept)
        module.recompile()


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


def user_outputs(exported: ExportedProgram) -> list[fx.Node]:
    """The tensors that the module returns, without the buffers that it changed."""
    (nodes,) = exported.graph.find_nodes(op="output")[0].args
    specs = exported.graph_signature.output_specs
    return [
        node
        for node, spec in zip(nodes, specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
    ]


def user_inputs(exported: ExportedProgram, inputs: Any) -> dict[str, Tensor]:
    """Pair each placeholder of a tensor input with the tensor that was given for it."""
    names = [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    leaves = pytree.tree_leaves(inputs)
    return {name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}

"""One rule an op: how row spaces pass forward through it, and adjoints back.

A rule is sound when the spaces it gives hold for every value of the weights and the inputs. Each
forward rule returns the space of the op's output; each backward rule returns the adjoint that it
adds to each input. An op that is not in `RULES` makes both full.

A value's rows are everything but its last axis, counted in row-major order; two values merge only
where their shapes are equal, so that equal rows meet.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from compress.bounds.spaces import Space, constant, image, merge, uniform

aten = torch.ops.aten

Gradients = Iterable[tuple[fx.Node, Space]]


class Tracer(Protocol):
    """What a rule may ask of the engine that applies it."""

    leaky_is_linear: bool
    """Whether to treat every Leaky-ReLU as if its slope were 1."""

    def space(self, node: fx.Node) -> Space:
        """The space of a floating-point node's rows."""
        ...

    def name(self, node: fx.Node) -> str:
        """The layer whose weight the call uses, else its op."""
        ...

    def label(self, node: fx.Node) -> str:
        """The name, with the width of the output."""
        ...

    def weight(self, node: Any) -> fx.Node | None:
        """The parameter of two axes that a node is, seen through casts and transposes."""
        ...

    def use(self, weight: fx.Node, *, inputs: Space, adjoint: Space, rows: int) -> None:
        """Note that the weight's gradient has a term ΔᵀA."""
        ...

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node is a parameter that no forward pass changes."""
        ...


class Rule(NamedTuple):
    """`applies` says whether the rule covers this call; where it does not, the op counts as unknown."""

    applies: Callable[[Tracer, fx.Node], bool]
    forward: Callable[[Tracer, fx.Node], Space]
    backward: Callable[[Tracer, fx.Node, Space], Gradients]


def value(node: Any) -> Tensor | None:
    """The example tensor of a node that has floating-point entries, else None."""
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def width(node: fx.Node) -> int:
    """Entries of the last axis."""
    found = value(node)
    return int(found.shape[-1]) if found is not None and found.dim() else 1


def rows(node: fx.Node) -> int:
    """Entries of all axes but the last."""
    found = value(node)
    return found.numel() // max(1, width(node)) if found is not None else 1


def full(node: fx.Node, label: str) -> Space:
    """A source about which nothing is known but its width."""
    return Space(width(node), label)


def carries_gradient(node: fx.Node) -> bool:
    """Whether anything in a node's value, tuples and complex numbers included, can have an adjoint."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves)


def inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of a call that can have an adjoint."""
    return [source for source in node.all_input_nodes if carries_gradient(source)]


def _always(tracer: Tracer, node: fx.Node) -> bool:
    return True


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


# --- ops that leave every row as it is -------------------------------------------------------------


def _same_forward(tracer: Tracer, node: fx.Node) -> Space:
    return tracer.space(_first(node))


def _same_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    yield _first(node), adjoint


def _nothing_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    return ()


def _keeps_last_axis(tracer: Tracer, node: fx.Node) -> bool:
    # Row-major order keeps the rows in order as long as the last axis stays whole.
    return width(node) == width(_first(node))


def _is_scaling(tracer: Tracer, node: fx.Node) -> bool:
    return not isinstance(node.args[1], fx.Node)


SAME = Rule(_always, _same_forward, _same_backward)
DETACH = Rule(_always, _same_forward, _nothing_backward)
RESHAPE = Rule(_keeps_last_axis, _same_forward, _same_backward)
SCALE = Rule(_is_scaling, _same_forward, _same_backward)


# --- elementwise nonlinearities ----------------------------------------------------------------------
# Another slope for every entry: the result is one of full width, and the adjoint too.


def _elementwise_forward(tracer: Tracer, node: fx.Node) -> Space:
    return full(node, tracer.label(node))


def _elementwise_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    yield _first(node), full(_first(node), f"the slopes of {tracer.label(node)}")


ELEMENTWISE = Rule(_always, _elementwise_forward, _elementwise_backward)


def _either(identity: Callable[[Tracer, fx.Node], bool]) -> Rule:
    """An op that passes its input on where `identity` says so, and is a nonlinearity elsewhere."""

    def forward(tracer: Tracer, node: fx.Node) -> Space:
        return (SAME if identity(tracer, node) else ELEMENTWISE).forward(tracer, node)

    def backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
        return (SAME if identity(tracer, node) else ELEMENTWISE).backward(tracer, node, adjoint)

    return Rule(_always, forward, backward)


def _leaky_is_identity(tracer: Tracer, node: fx.Node) -> bool:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    return bool(slope == 1) or tracer.leaky_is_linear


def _dropout_is_off(tracer: Tracer, node: fx.Node) -> bool:
    _, probability, training = node.args
    return not training or bool(probability == 0)


LEAKY_RELU = _either(_leaky_is_identity)
DROPOUT = _either(_dropout_is_off)


# --- linear maps by a weight -------------------------------------------------------------------------


@dataclass(frozen=True)
class _LinearCall:
    """x (rows × n) times a weight, plus a bias."""

    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def _linear_call(tracer: Tracer, node: fx.Node) -> _LinearCall | None:
    """Recognise linear(x, W, b), x @ W and addmm(b, x, W); None where the weight is not a parameter."""
    operands = list(node.args)
    bias: Any = None
    if node.target is aten.addmm.default:
        bias, *operands = operands
        if any(node.kwargs.get(key, 1) == 0 for key in ("alpha", "beta")):
            return None
    elif node.target is aten.linear.default and len(operands) == 3:
        bias = operands.pop()
    source, matrix = operands
    found = tracer.weight(matrix)
    if found is None or not isinstance(source, fx.Node) or value(source) is None or tracer.weight(source):
        return None
    bias_value = value(bias)
    if bias is not None and (bias_value is None or bias_value.dim() != 1 or not tracer.is_constant(bias)):
        return None
    return _LinearCall(source, found, bias)


def _is_linear(tracer: Tracer, node: fx.Node) -> bool:
    return _linear_call(tracer, node) is not None


def _linear_forward(tracer: Tracer, node: fx.Node) -> Space:
    call = _linear_call(tracer, node)
    assert call is not None
    label = tracer.label(node)
    mapped = image(tracer.space(call.source), width(node), label)
    return mapped if call.bias is None else merge([mapped, constant(width(node))], width(node), label)


def _linear_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    call = _linear_call(tracer, node)
    assert call is not None
    tracer.use(call.weight, inputs=tracer.space(call.source), adjoint=adjoint, rows=rows(call.source))
    yield (
        call.source,
        image(adjoint, width(call.source), f"the input of {tracer.name(node)} ({width(call.source)} wide)"),
    )


LINEAR = Rule(_is_linear, _linear_forward, _linear_backward)


# --- sums ----------------------------------------------------------------------------------------------


def _operands(node: fx.Node) -> tuple[Any, Any]:
    left, right = node.args[:2]
    return left, right


def _merges(tracer: Tracer, node: fx.Node) -> bool:
    """Whether each operand has the rows of the result, or is one vector (or number) for all of them."""
    result = value(node)
    if result is None:
        return False
    for operand in _operands(node):
        tensor = value(operand)
        if isinstance(operand, fx.Node) and (
            tensor is None or (tensor.shape != result.shape and not _is_row(tracer, operand, width(node)))
        ):
            return False
    return True


def _is_row(tracer: Tracer, node: fx.Node, entries: int) -> bool:
    tensor = value(node)
    return tensor is not None and tensor.dim() == 1 and tensor.numel() == entries and tracer.is_constant(node)


def _sum_forward(tracer: Tracer, node: fx.Node) -> Space:
    entries, parts = width(node), []
    for operand in _operands(node):
        if not isinstance(operand, fx.Node) or _is_row(tracer, operand, entries):
            parts.append(constant(entries))
        else:
            parts.append(tracer.space(operand))
    return merge(parts, entries, tracer.label(node))


def _sum_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    return [(operand, adjoint) for operand in _operands(node) if isinstance(operand, fx.Node)]


SUM = Rule(_merges, _sum_forward, _sum_backward)


# --- losses --------------------------------------------------------------------------------------------


def _reduction_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    source = _first(node)
    yield source, uniform(width(source)) if adjoint.uniform else full(source, tracer.label(node))


REDUCTION = Rule(_always, _elementwise_forward, _reduction_backward)


def _is_square(tracer: Tracer, node: fx.Node) -> bool:
    return bool(node.args[1] == 2)


def _square_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    # d(z²) = 2 z: under a mean or a sum the adjoint is a multiple of z itself.
    source = _first(node)
    yield source, tracer.space(source) if adjoint.uniform else full(source, tracer.label(node))


SQUARE = Rule(_is_square, _elementwise_forward, _square_backward)


def _squared_error_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    output, target = _operands(node)
    label = tracer.label(node)
    if adjoint.uniform:
        difference = merge([tracer.space(output), tracer.space(target)], width(output), label)
    else:
        difference = full(output, label)
    return [(output, difference), (target, difference)]


def _same_shapes(tracer: Tracer, node: fx.Node) -> bool:
    left, right = (value(operand) for operand in _operands(node))
    return left is not None and right is not None and left.shape == right.shape


SQUARED_ERROR = Rule(_same_shapes, _elementwise_forward, _squared_error_backward)


def _classes_come_last(tracer: Tracer, node: fx.Node) -> bool:
    logits = value(_first(node))
    return logits is not None and logits.dim() <= 2


def _cross_entropy_backward(tracer: Tracer, node: fx.Node, adjoint: Space) -> Gradients:
    # Each row is a multiple of softmax·Σt − t and sums to zero: with label smoothing, class weights,
    # ignored rows and soft targets too.
    logits = _first(node)
    classes = width(logits)
    yield logits, Space(classes - 1, f"cross-entropy over {classes} classes, whose rows sum to zero")
    for other in node.args[1:]:  # soft targets and class weights may depend on weights too
        if isinstance(other, fx.Node) and value(other) is not None:
            yield other, full(other, tracer.label(node))


CROSS_ENTROPY = Rule(_classes_come_last, _elementwise_forward, _cross_entropy_backward)


RULES: Mapping[Any, Rule] = {
    **dict.fromkeys(
        [aten.alias.default, aten.clone.default, aten.contiguous.default, aten._to_copy.default, aten.neg.default],
        SAME,
    ),
    aten.detach.default: DETACH,
    **dict.fromkeys(
        [
            aten.view.default,
            aten._unsafe_view.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
        ],
        RESHAPE,
    ),
    **dict.fromkeys([aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar], SCALE),
    aten.dropout.default: DROPOUT,
    **dict.fromkeys(
        [
            aten.relu.default,
            aten.gelu.default,
            aten.silu.default,
            aten.tanh.default,
            aten.sigmoid.default,
            aten.elu.default,
            aten.softplus.default,
            aten.hardtanh.default,
            aten.relu6.default,
            aten.mish.default,
            aten.hardswish.default,
            aten.exp.default,
            aten.sin.default,
            aten.cos.default,
            aten.abs.default,
        ],
        ELEMENTWISE,
    ),
    aten.leaky_relu.default: LEAKY_RELU,
    **dict.fromkeys([aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default], LINEAR),
    **dict.fromkeys([aten.add.Tensor, aten.sub.Tensor], SUM),
    **dict.fromkeys([aten.mean.default, aten.sum.default, aten.mean.dim, aten.sum.dim_IntList], REDUCTION),
    aten.pow.Tensor_Scalar: SQUARE,
    aten.mse_loss.default: SQUARED_ERROR,
    aten.cross_entropy_loss.default: CROSS_ENTROPY,
}
"""Every op the engine knows, and its rule."""

"""What a rule is, what it may ask, and the table that rules are kept in."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from compress.bounds.operations import Operations
from compress.bounds.values import Value

aten = torch.ops.aten


class Tracer(Protocol):
    """The engine, as rules see it."""

    ops: Operations
    linear: bool
    """Whether elementwise activations count as multiples of their input (for `linear_rank`)."""

    def value(self, node: fx.Node) -> Value:
        """What is known of a tensor."""
        ...

    def weight(self, node: Any) -> tuple[str, bool] | None:
        """The parameter of two axes that a node is, seen through casts and transposes, and whether transposed."""
        ...

    def parameter(self, node: Any) -> str | None:
        """The parameter, of any shape, that a node is; None if the forward pass changes it."""
        ...

    def shared(self, node: Any) -> bool:
        """Whether a node is computed from parameters alone."""
        ...

    def use(self, name: str, inputs: Value, adjoint: Value, rows: int) -> None:
        """Note that a parameter's gradient has a term ΔᵀA; `inputs` and `adjoint` have FEATURE axes."""
        ...

    def use_tokens(self, name: str, inputs: Value, adjoint: Value, rows: int) -> None:
        """Note a use whose rows pick entries of a table, of which the data may hold few distinct ones."""
        ...

    accumulation_steps: int
    """Backward passes of one worker."""

    def synchronised(self, node: fx.Node) -> bool:
        """Whether a normalisation takes its statistics over all workers."""
        ...

    def title(self, node: fx.Node) -> str:
        """The layer whose weight a call uses, else its op."""
        ...


class Call:
    """One call of an op in the graph: its arguments by name, and what is known of them."""

    def __init__(self, tracer: Tracer, node: fx.Node) -> None:
        self.tracer, self.node, self.ops, self.algebra = tracer, node, tracer.ops, tracer.ops.algebra
        self.name = node.name
        arguments: dict[str, Any] = {}
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            for position, argument in enumerate(schema.arguments):
                if position < len(node.args):
                    arguments[argument.name] = node.args[position]
                else:
                    arguments[argument.name] = node.kwargs.get(argument.name, argument.default_value)
        self._arguments = arguments

    def __getitem__(self, argument: str) -> Any:
        return self._arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        return self._arguments.get(argument, default)

    @property
    def title(self) -> str:
        return self.tracer.title(self.node)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output."""
        return shape(self.node)

    def label(self, width: int | None = None) -> str:
        rows = 1 <= len(self.shape) <= 3  # the last axis of an image is a position
        entries = self.shape[-1] if width is None and rows else width
        return f"{self.title} ({entries} wide)" if entries is not None else self.title

    def value(self, argument: str) -> Value:
        return self.tracer.value(self[argument])

    def full(self, node: fx.Node, why: str | None = None) -> Value:
        """A tensor of the node's shape of which nothing is known, whose rows are those of its value."""
        axes = self.tracer.value(node).axes
        return self.ops.anything(shape(node), (self.name, node.name, self.ops.fresh()), why or self.title, axes)


Forward = Callable[[Call], Any]
Gradients = Iterable[tuple[fx.Node, Value]]
"""Inputs of a call, each with the adjoint that the call sends it."""

Backward = Callable[[Call, Any], Gradients]


@dataclass(frozen=True)
class Rule:
    """How values pass forward through an op, and adjoints back.

    Attributes:
        forward: the value of the output (a list for several outputs), or None where the rule does not
            cover the call; the op then counts as unknown.
        backward: the adjoint that each input gets from that of the output (a list for several outputs,
            None where nothing arrives).
        does: the rule in words, for the documentation.
        because: why it is sound.
    """

    forward: Forward
    backward: Backward
    does: str
    because: str


RULES: dict[Any, Rule] = {}
"""Every op that is known, and its rule."""


def define(ops: Sequence[Any], forward: Forward, backward: Backward, does: str, because: str) -> Rule:
    rule = Rule(forward, backward, does, because)
    for op in ops:
        RULES[op] = rule
    return rule


def register_rule(
    op: Any, forward: Forward, backward: Backward, *, does: str = "", because: str = "", replace: bool = False
) -> None:
    """Teach `rank_bounds` an op, such as a custom one from `torch.library`.

    Args:
        op: an overload, such as `torch.ops.mine.scale.default`.
        forward: `forward(call)` gives the `Value` of the output (a list for several outputs), or None where
            it does not cover the call. `call["name"]` is an argument, `call.value("name")` what is known of
            a tensor argument, `call.ops` the operations on values.
        backward: `backward(call, adjoint)` yields pairs of an input's node and its adjoint. **It must hold for
            every value of weights and data**: what it leaves out makes bounds too small.
        does: the rule in words.
        because: why it is sound.
        replace: whether a rule that is there already may be replaced.

    Raises:
        ValueError: not an overload of an op, or it has a rule and `replace` is not set.
    """
    if not isinstance(op, torch._ops.OpOverload):
        raise ValueError(f"{op!r} is no overload of an op; give one such as torch.ops.mine.scale.default")
    if op in RULES and not replace:
        raise ValueError(f"{op} has a rule already; pass replace=True to put another in its place")
    define([op], forward, backward, does, because)


def shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta.get("val")
    return tuple(int(size) for size in found.shape) if isinstance(found, Tensor) else ()


def is_float(node: Any) -> bool:
    found = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(found, Tensor) and found.is_floating_point()


def nothing(call: Call, adjoint: Any) -> Gradients:
    """No adjoint to any input."""
    return ()


def slopes(call: Call, adjoint: Any) -> Gradients:
    """To every input another slope for each entry, so all there is."""
    for node in call.node.all_input_nodes:
        if is_float(node):
            yield node, call.full(node, f"the slopes of {call.title}")

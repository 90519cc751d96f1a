"""Walks a traced graph: values forward, adjoints back, and the products ΔᵀA that gradients are sums of."""

import operator
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from compress.bounds.dimensions import Dimensions
from compress.bounds.maps import Row
from compress.bounds.operations import Operations
from compress.bounds.rules.base import RULES, Call, Rule, is_float, shape
from compress.bounds.rules.shape import DETACH, SAME, TRANSPOSES, order
from compress.bounds.spaces import Algebra
from compress.bounds.trace import user_outputs
from compress.bounds.values import ONE, Axis, Kind, Role, Value

_RANDOM = ("rand", "normal", "bernoulli", "dropout", "multinomial", "uniform")


class Use(NamedTuple):
    """One product ΔᵀA: `rows` rows of `inputs` (A) and of `adjoint` (Δ); both have FEATURE axes."""

    inputs: Value
    adjoint: Value
    rows: int
    tokens: bool = False


class GraphTracer:
    """Implements `rules.Tracer` for one graph.

    Attributes:
        uses: of each parameter's placeholder.
        gradients: adjoints that reach a parameter in another way than by a use.
        unknown_ops: ops without a rule on a path to a weight.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        given: Mapping[str, Tensor],
        input_rank: int | None,
        dimensions: Dimensions,
        *,
        linear: bool,
        accumulation_steps: int = 1,
    ) -> None:
        self.linear, self.accumulation_steps = linear, accumulation_steps
        self.ops = Operations(Algebra(dimensions))
        self.uses: dict[str, list[Use]] = defaultdict(list)
        self.gradients: dict[str, list[Value]] = defaultdict(list)
        self.unknown_ops: Counter[str] = Counter()
        self._graph = exported.graph
        self._outputs = user_outputs(exported)
        signature = exported.graph_signature
        self._parameters: Mapping[str, str] = signature.inputs_to_parameters
        # Buffers do not count: a forward pass may assign them anew, which the signature does not tell.
        changed = set(signature.parameters_to_mutate.values())
        self._unchanged = {name for name, parameter in self._parameters.items() if parameter not in changed}
        self._values: dict[fx.Node, Any] = {}
        self._shared: set[fx.Node] = set()
        self._followed: set[fx.Node] = set()
        self._forward(set(signature.user_inputs), given, input_rank)
        self._backward()

    # --- what rules ask -------------------------------------------------------------------------------------

    def value(self, node: fx.Node) -> Value:
        found: Value = self._values[node]
        return found

    def weight(self, node: Any) -> tuple[str, bool] | None:
        transposed = False
        while isinstance(node, fx.Node) and node.op == "call_function":
            if node.target in TRANSPOSES and len(shape(node)) == 2:
                transposed = transposed != (order(Call(self, node)) == [1, 0])
            elif RULES.get(node.target) is not SAME:
                return None
            node = node.args[0]
        if isinstance(node, fx.Node) and node.name in self._unchanged and len(shape(node)) >= 2:
            return node.name, transposed
        return None

    def parameter(self, node: Any) -> str | None:
        while isinstance(node, fx.Node) and node.op == "call_function" and RULES.get(node.target) is SAME:
            node = node.args[0]
        return node.name if isinstance(node, fx.Node) and node.name in self._unchanged else None

    def shared(self, node: Any) -> bool:
        return node in self._shared

    def synchronised(self, node: fx.Node) -> bool:
        stack = node.meta.get("nn_module_stack") or {}
        return any("SyncBatchNorm" in str(kind) for _, kind in stack.values())

    def use(self, name: str, inputs: Value, adjoint: Value, rows: int) -> None:
        self.uses[name].append(Use(inputs, adjoint, rows))

    def use_tokens(self, name: str, inputs: Value, adjoint: Value, rows: int) -> None:
        self.uses[name].append(Use(inputs, adjoint, rows, tokens=True))

    def title(self, node: fx.Node) -> str:
        for argument in pytree.tree_leaves((node.args, node.kwargs)):
            found = self.weight(argument)
            if found is not None:
                return self.parameter_name(found[0]).removesuffix(".weight")
        for argument in node.args:
            name = self.parameter(argument)
            if name is not None:
                return self.parameter_name(name).removesuffix(".weight").removesuffix(".bias")
        return operation_name(node)

    def parameter_name(self, placeholder: str) -> str:
        """The dotted name within the model."""
        return self._parameters[placeholder].removeprefix("model.")

    # --- forward ------------------------------------------------------------------------------------------------

    def _forward(self, inputs: set[str], given: Mapping[str, Tensor], input_rank: int | None) -> None:
        sources: dict[Any, Value] = {}
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if node.name in self._unchanged:
                    self._shared.add(node)
                if is_float(node):
                    self._values[node] = (
                        self._input(node, given[node.name], sources, input_rank)
                        if node.name in inputs
                        else self._stored(node)
                    )
            elif node.op == "call_function":
                if self._only_parameters(node):
                    self._shared.add(node)
                self._values[node] = self._called(node)

    def _input(self, node: fx.Node, tensor: Tensor, sources: dict[Any, Value], input_rank: int | None) -> Value:
        """The same tensor given twice is one source."""
        own = shape(node)
        key = (id(tensor), own)
        if key not in sources:
            target = node.name.startswith("targets")
            label = f"the {'target' if target else 'input'}" + (f" ({own[-1]} wide)" if own else "")
            found = self.ops.anything(own, ("given", node.name), label)
            if input_rank is not None and own and input_rank < own[-1] and not target:
                algebra = self.ops.algebra
                label = f"the input, of rank {input_rank} (input_rank)"
                space = algebra.source(("given", node.name), input_rank, own[-1], label)
                axes = [Axis(i, size) for i, size in enumerate(own[:-1]) if size > 1]
                axes.append(Axis(len(own) - 1, own[-1], Role.FEATURE))
                rows = max(1, tensor.numel() // own[-1])
                found = self.ops.single(axes, {algebra.root("given", node.name, label=label): space}, rows, label)
            sources[key] = found
        return sources[key]

    def _stored(self, node: fx.Node) -> Value:
        """A parameter, a buffer or a captured tensor, used as a value."""
        own, label = shape(node), f"the tensor {node.name}"
        if node.name not in self._unchanged:
            return self.ops.anything(own, ("stored", node.name), label)
        algebra, name = self.ops.algebra, node.name
        label = self.parameter_name(name)
        width = own[-1] if own else 1
        rows = 1
        for size in own[:-1]:
            rows *= size
        axes = [Axis(("rows of", name, i), size) for i, size in enumerate(own[:-1]) if size > 1]
        axes.append(Axis(("columns of", name), width, Role.FEATURE))
        if rows == 1:
            terms = {algebra.constant: algebra.image(algebra.one, Row(1, width, name))}
        else:
            terms = {
                algebra.root("stored", name, label=label): algebra.source(
                    ("parameter", name), min(rows, width), width, label
                )
            }
        return self.ops.single(axes, terms, rows, label)

    def _only_parameters(self, node: fx.Node) -> bool:
        if any(word in str(node.target) for word in _RANDOM):
            return False
        return all(source in self._shared for source in node.all_input_nodes)

    def _called(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source: Any
            index: Any
            source, index = node.args
            self._followed.add(node)
            found = self._values.get(source)
            item = found[index] if isinstance(found, list) and index < len(found) else None
            return item if item is not None or not is_float(node) else self._unknown(node)
        rule = self._rule(node)
        if rule is not None:
            found = rule.forward(Call(self, node))
            if found is not None:
                self._followed.add(node)
                return found
        return self._unknown(node)

    def _rule(self, node: fx.Node) -> Rule | None:
        outputs = pytree.tree_leaves(node.meta.get("val"))
        if not any(isinstance(output, Tensor) and output.is_floating_point() for output in outputs):
            return None
        return RULES.get(node.target)

    def _unknown(self, node: fx.Node) -> Any:
        label = f"no rule for {operation_name(node)}"
        outputs = node.meta.get("val")
        if isinstance(outputs, Tensor):
            return self.ops.anything(shape(node), ("unknown", node.name), label)
        if isinstance(outputs, list | tuple):
            return [
                self.ops.anything(tuple(output.shape), ("unknown", node.name, i), label)
                if isinstance(output, Tensor)
                else None
                for i, output in enumerate(outputs)
            ]
        return None

    # --- backward -----------------------------------------------------------------------------------------------

    def _backward(self) -> None:
        arriving: dict[fx.Node, Any] = defaultdict(list)
        outputs = [node for node in self._outputs if _carries_gradient(node)]
        scalar = len(outputs) == 1 and outputs[0].meta["val"].numel() == 1 and is_float(outputs[0])
        for node in outputs:
            if scalar:
                arriving[node].append(self.ops.blank(shape(node), Kind.UNIFORM, "the loss", ONE))
            else:
                unknown = self.ops.anything(
                    shape(node),
                    ("adjoint", node.name, self.ops.fresh()),
                    "no loss was given, so nothing is known of the adjoint",
                    self._values[node].axes if isinstance(self._values.get(node), Value) else (),
                )
                arriving[node].append(unknown)
        needed = self._leads_to_a_weight()
        for node in reversed(self._graph.nodes):
            if node not in arriving or node not in needed:
                continue
            arrived = arriving.pop(node)
            if node.op == "placeholder":
                if node.name in self._parameters:
                    self.gradients[node.name] += arrived
                continue
            if node.target is operator.getitem:
                source: Any = node.args[0]
                index = node.args[1]
                arriving[source].append((index, self._total(node, arrived)))
                continue
            for source, adjoint in self._sent(node, arrived):
                if source in needed:
                    arriving[source].append(adjoint)

    def _total(self, node: fx.Node, arrived: Sequence[Value]) -> Value:
        own = shape(node)
        return self.ops.add(arrived, [own] * len(arrived), own, f"the adjoint of {operation_name(node)}")

    def _sent(self, node: fx.Node, arrived: list[Any]) -> list[tuple[fx.Node, Value]]:
        if node not in self._followed:
            if not any((pair[1] if isinstance(pair, tuple) else pair).kind is not Kind.ZERO for pair in arrived):
                return []
            self.unknown_ops[operation_name(node)] += 1
            label = f"no rule for {operation_name(node)}"
            return [
                (source, self.ops.anything(shape(source), ("unknown", self.ops.fresh()), label, self._axes(source)))
                for source in node.all_input_nodes
                if _carries_gradient(source)
            ]
        if arrived and isinstance(arrived[0], tuple):
            count = len(node.meta["val"])
            by_output: list[Value | None] = [None] * count
            for index, value in arrived:
                before = by_output[index]
                own = tuple(int(size) for size in node.meta["val"][index].shape)
                both = [value] if before is None else [before, value]
                by_output[index] = self.ops.add(both, [own] * len(both), own, value.label)
            if all(value is None or _is_zero(value) for value in by_output):
                return self._nothing(node)
            return list(RULES[node.target].backward(Call(self, node), by_output))
        total = self._total(node, arrived)
        return self._nothing(node) if _is_zero(total) else list(RULES[node.target].backward(Call(self, node), total))

    def _nothing(self, node: fx.Node) -> list[tuple[fx.Node, Value]]:
        """What a zero adjoint sends on: every derivative is linear in it."""
        sources = [source for source in node.all_input_nodes if is_float(source)]
        return [(source, self.ops.blank(shape(source), Kind.ZERO, operation_name(node))) for source in sources]

    def _axes(self, node: fx.Node) -> Sequence[Axis]:
        found = self._values.get(node)
        return found.axes if isinstance(found, Value) else ()

    def _leads_to_a_weight(self) -> set[fx.Node]:
        """Nodes that depend on a parameter: adjoints of all others are of no interest."""
        needed: set[fx.Node] = set()
        for node in self._graph.nodes:
            if node.name in self._parameters or any(source in needed for source in node.all_input_nodes):
                needed.add(node)
        return needed

    def reaches_the_loss(self, placeholders: Sequence[str]) -> bool:
        """Whether any way leads from a parameter to an output, other than through a detach: the last safeguard."""
        pending, seen = list(self._outputs), set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in seen or RULES.get(node.target) is DETACH:
                continue
            seen.add(node)
            pending += node.all_input_nodes
        return any(node.name in placeholders for node in seen)


def _carries_gradient(node: fx.Node) -> bool:
    """Whether anything in a node's value, tuples and complex numbers included, can have an adjoint."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves)


def _is_zero(value: Value) -> bool:
    known = value.kind is Kind.KNOWN and not any(part.limit for terms in value.terms() for part in terms.values())
    return known or value.kind is Kind.ZERO


def operation_name(node: fx.Node) -> str:
    """The op in short, such as `tanh`."""
    if node.op != "call_function":
        return node.name
    return str(getattr(node.target, "overloadpacket", node.target)).replace("aten.", "")

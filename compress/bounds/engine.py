"""`rank_bounds`: row spaces forward through the graph, adjoints back, and a bound for each matrix."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from compress.bounds import rules
from compress.bounds.result import Bounds, RankBound
from compress.bounds.rules import RULES, aten
from compress.bounds.spaces import Space, merge, uniform
from compress.bounds.trace import Loss, trace, user_inputs, user_outputs
from compress.matrix import matrix_shape, named_matrices, unwrapped


def rank_bounds(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Loss | None = None,
    targets: Sequence[Any] = (),
    world_size: int | None = None,
    accumulation_steps: int = 1,
    training: bool = True,
    input_rank: int | None = None,
) -> Bounds:
    """Bound the rank of every gradient that the architecture can give, whatever weights and data are.

    The network is traced with `torch.export` at the shapes given; nothing is computed, so tensors on
    the meta device do. The bound holds for the mean gradient over all workers:
    rank(Σ ΔᵀA) ≤ min(m, n, rows, dim space(A), dim space(Δ)) (Baker et al. 2024, eq. 1, with the weights
    of the layer itself left out, and with row spaces in place of a product of ranks).

    Args:
        model: the network; left as it was.
        args: positional inputs of one worker's batch in one backward pass.
        kwargs: keyword inputs. Numbers and other settings among the inputs must stay as they are here.
        loss: `loss(output, *targets)` gives a scalar. Left out, the network's own `.loss` or its scalar
            output is used; if it has neither, nothing is known of the adjoints and the reasons say so.
            A tensor that the function captures counts as arbitrary.
        targets: traced as inputs. A target that is one of the input tensors is recognised as such.
        world_size: workers whose gradients are averaged; None means the process group's, else 1.
        accumulation_steps: backward passes that are summed before an exchange.
        training: trace in training or in evaluation mode.
        input_rank: dimensions of a space that holds every row of every floating-point tensor in `args`
            and `kwargs`, in all batches; None where that is not known.

    Raises:
        TraceError: the network cannot be traced, the loss is not a scalar, or backward hooks or functions
            with a backward of their own change gradients where the graph does not show it.
        ValueError: world_size, accumulation_steps or input_rank below 1.
    """
    if world_size is None:
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    for name, count in (("world_size", world_size), ("accumulation_steps", accumulation_steps)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be 1 or more")
    if input_rank is not None and input_rank < 1:
        raise ValueError(f"input_rank is {input_rank}; it must be 1 or more, or None")

    model = unwrapped(model)
    inputs = (tuple(args), dict(kwargs or {}), tuple(targets))
    exported, parameters = trace(model, *inputs[:2], loss, targets, training)
    given = user_inputs(exported, inputs)
    repeats = accumulation_steps * world_size
    exact = _Engine(exported, given, input_rank, leaky_is_linear=False)
    linear = _Engine(exported, given, input_rank, leaky_is_linear=True)

    # Tied weights have one placeholder under any of their names, so names alone would miss uses.
    by_storage: dict[int, list[str]] = defaultdict(list)
    for placeholder, parameter in parameters.items():
        by_storage[_storage(parameter)].append(placeholder)
    unseen = {
        _storage(tensor) for tensor in (*exported.constants.values(), *given.values()) if isinstance(tensor, Tensor)
    }
    entries = {}
    for name, parameter in named_matrices(model):
        storage, shape = _storage(parameter), matrix_shape(parameter.shape)
        if storage in unseen:
            reason = "full: it is captured, or given as an input, besides being a parameter"
            entries[name] = RankBound(min(shape), shape, reason, min(shape))
            continue
        bound = exact.bound(by_storage[storage], shape, repeats, accumulation_steps)
        relaxed = linear.bound(by_storage[storage], shape, repeats, accumulation_steps)
        entries[name] = replace(bound, linear_rank=relaxed.rank)
    return Bounds(
        entries=entries,
        input_shapes=tuple(tuple(tensor.shape) for tensor in given.values()),
        world_size=world_size,
        accumulation_steps=accumulation_steps,
        training=training,
        unknown_ops=exact.unknown_ops,
    )


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # an address that tensors on the meta device have too


class _Use(NamedTuple):
    """One product ΔᵀA that a gradient is a sum of: `rows` rows of `inputs` (A) and of `adjoint` (Δ)."""

    inputs: Space
    adjoint: Space
    rows: int


class _Engine:
    """Walks one exported graph; see `rules.Tracer` for what rules may ask of it."""

    def __init__(
        self,
        exported: ExportedProgram,
        given: Mapping[str, Tensor],
        input_rank: int | None,
        *,
        leaky_is_linear: bool,
    ) -> None:
        self.leaky_is_linear = leaky_is_linear
        self.unknown_ops: Counter[str] = Counter()
        self._exported = exported
        self._given = given
        self._input_rank = input_rank
        self._spaces: dict[fx.Node, Space] = {}
        self._uses: dict[str, list[_Use]] = defaultdict(list)
        self._other_uses: dict[str, str] = {}
        signature = exported.graph_signature
        self._parameters = signature.inputs_to_parameters
        # Buffers do not count: a forward pass may assign them anew, which the signature does not tell.
        changed = set(signature.parameters_to_mutate.values())
        self._constants = {name for name in self._parameters if self._parameters[name] not in changed}
        self._forward()
        self._backward()

    # --- what rules ask ---------------------------------------------------------------------------

    def space(self, node: fx.Node) -> Space:
        return self._spaces[node]

    def name(self, node: fx.Node) -> str:
        for argument in node.args:
            weight = self.weight(argument)
            if weight is not None:
                parameter: str = self._parameters[weight.name]
                return parameter.removeprefix("model.").removesuffix(".weight")
        return _operation_name(node)

    def label(self, node: fx.Node) -> str:
        return f"{self.name(node)} ({rules.width(node)} wide)"

    def weight(self, node: Any) -> fx.Node | None:
        while isinstance(node, fx.Node) and node.op == "call_function":
            transposes = node.target in _TRANSPOSES and len(node.meta["val"].shape) == 2
            if not transposes and RULES.get(node.target) is not rules.SAME:
                return None
            node = node.args[0]
        if isinstance(node, fx.Node) and node.name in self._parameters and len(node.meta["val"].shape) == 2:
            return node
        return None

    def is_constant(self, node: fx.Node) -> bool:
        return node.name in self._constants

    def use(self, weight: fx.Node, *, inputs: Space, adjoint: Space, rows: int) -> None:
        self._uses[weight.name].append(_Use(inputs, adjoint, rows))

    # --- the two walks ------------------------------------------------------------------------------

    def _forward(self) -> None:
        sources = self._input_spaces()
        for node in self._exported.graph.nodes:
            if rules.value(node) is None:
                continue
            rule = self._rule(node)
            if node.name in sources:
                self._spaces[node] = sources[node.name]
            elif node.op == "placeholder":
                self._spaces[node] = rules.full(node, f"the tensor {node.name} ({rules.width(node)} wide)")
            elif rule is not None:
                self._spaces[node] = rule.forward(self, node)
            else:
                self._spaces[node] = rules.full(node, _unknown(node))

    def _input_spaces(self) -> dict[str, Space]:
        """One source for each input tensor; the same tensor given twice is the same source."""
        given = set(self._exported.graph_signature.user_inputs)
        sources: dict[str, Space] = {}
        seen: dict[tuple[int, tuple[int, ...]], Space] = {}
        for node in self._exported.graph.find_nodes(op="placeholder"):
            if node.name not in given or rules.value(node) is None:
                continue
            tensor = self._given[node.name]
            key = (id(tensor), tuple(tensor.shape))
            if key not in seen:
                entries = rules.width(node)
                target = node.name.startswith("targets")
                known = None if target else self._input_rank
                label = f"the {'target' if target else 'input'} ({entries} wide)"
                if known is not None and known < entries:
                    label = f"the input, of rank {known} (input_rank)"
                    entries = known
                seen[key] = Space(entries, label)
            sources[node.name] = seen[key]
        return sources

    def _rule(self, node: fx.Node) -> rules.Rule | None:
        operands = node.all_input_nodes
        if node.op != "call_function" or rules.value(node) is None or not operands or rules.value(operands[0]) is None:
            return None  # rules are for real floating-point tensors
        rule = RULES.get(node.target)
        return rule if rule is not None and rule.applies(self, node) else None

    def _backward(self) -> None:
        arriving: dict[fx.Node, list[Space]] = defaultdict(list)
        outputs = [node for node in user_outputs(self._exported) if rules.carries_gradient(node)]
        scalar = len(outputs) == 1 and outputs[0].meta["val"].numel() == 1
        for node in outputs:
            no_loss = Space(rules.width(node), "no loss was given, so nothing is known of the adjoint")
            arriving[node].append(uniform(1) if scalar else no_loss)

        needed = self._leads_to_a_weight()
        for node in reversed(self._exported.graph.nodes):
            if node not in arriving or node not in needed:
                continue
            adjoint = merge(arriving.pop(node), rules.width(node), f"the adjoint of {self.label(node)}")
            if node.op == "placeholder":
                continue
            rule = self._rule(node)
            if rule is None:
                self.unknown_ops[_operation_name(node)] += 1
                contributions = [(source, rules.full(source, _unknown(node))) for source in rules.inputs(node)]
            else:
                contributions = list(rule.backward(self, node, adjoint))
            for source, space in contributions:
                arriving[source].append(space)
                if source.name in self._parameters:
                    self._other_uses.setdefault(source.name, _operation_name(node))

    def _leads_to_a_weight(self) -> set[fx.Node]:
        """Nodes that depend on a parameter: adjoints of all others are of no interest."""
        needed: set[fx.Node] = set()
        for node in self._exported.graph.nodes:
            if node.name in self._parameters or any(source in needed for source in node.all_input_nodes):
                needed.add(node)
        return needed

    def _reaches_the_loss(self, placeholders: Sequence[str]) -> bool:
        """Whether any way leads from a parameter to an output, other than through a detach: the last safeguard."""
        pending, seen = list(user_outputs(self._exported)), set[fx.Node]()
        while pending:
            node = pending.pop()
            if node in seen or RULES.get(node.target) is rules.DETACH:
                continue
            seen.add(node)
            pending += node.all_input_nodes
        return any(node.name in placeholders for node in seen)

    # --- bounds --------------------------------------------------------------------------------------

    def bound(self, placeholders: Sequence[str], shape: tuple[int, int], repeats: int, accumulation: int) -> RankBound:
        """The bound of one m × n parameter, from every use under any of its names."""
        m, n = shape
        others = [self._other_uses[name] for name in placeholders if name in self._other_uses]
        if others:
            reason = f"full: {others[0]} uses it, and has no rule for a weight"
            return RankBound(min(m, n), (m, n), reason, min(m, n), None)
        uses = [use for name in placeholders for use in self._uses[name]]
        if not uses and self._reaches_the_loss(placeholders):
            return RankBound(
                min(m, n), (m, n), "full: it reaches the loss by a way that no rule follows", min(m, n), None
            )
        if not uses:
            return RankBound(0, (m, n), "the loss does not depend on it", 0, 0)
        limits = [_limit(use, repeats) for use in uses]
        rank = sum(limit for limit, _ in limits)
        rows = accumulation * sum(use.rows for use in uses)
        if rank >= min(m, n):
            reason = f"full: min(m, n) = {min(m, n)}; " + "; ".join(dict.fromkeys(why for _, why in limits))
            return RankBound(min(m, n), (m, n), reason, min(m, n), rows)
        reason = " + ".join(dict.fromkeys(why for _, why in limits))
        if len(uses) > 1:
            reason = f"{len(uses)} uses: {reason}"
        return RankBound(rank, (m, n), reason, rank, rows)


def _limit(use: _Use, repeats: int) -> tuple[int, str]:
    """The rank of one product ΔᵀA, and why."""
    candidates = [
        (use.inputs.dimension, "input: " + _join(use.inputs)),
        (use.adjoint.dimension, "adjoint: " + _join(use.adjoint)),
        (use.rows * repeats, f"rows: {use.rows} in a backward pass × {repeats} (accumulation steps × workers)"),
    ]
    return min(candidates, key=lambda candidate: candidate[0])


def _join(space: Space) -> str:
    return " + ".join(sorted({part.label for part in space.narrowest})) or "always zero"


def _unknown(node: fx.Node) -> str:
    return f"no rule for {_operation_name(node)}"


def _operation_name(node: fx.Node) -> str:
    target = node.target
    return (
        str(getattr(target, "overloadpacket", target)).replace("aten.", "") if node.op == "call_function" else node.name
    )


_TRANSPOSES = {aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default}

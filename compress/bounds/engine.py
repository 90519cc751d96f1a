"""`rank_bounds`: row spaces forward through the graph, adjoints back, and a bound for each matrix."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from compress.bounds.bases import Bases
from compress.bounds.dimensions import Dimensions
from compress.bounds.limits import Limits, Side
from compress.bounds.recipe import Recipe, Sides, Writer
from compress.bounds.result import Bounds, RankBound, Subspaces
from compress.bounds.trace import Loss, LossError, TraceError, trace, user_inputs
from compress.bounds.tracer import GraphTracer, Use
from compress.bounds.values import Kind, Value
from compress.matrix import canonical_name, matrix_shape, named_matrices, unwrapped


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
    distinct_tokens: int | None = None,
    untraceable: Literal["refuse", "shape"] = "refuse",
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
        input_rank: dimensions of a space that holds every row (the entries of the last axis) of every
            floating-point tensor in `args` and `kwargs`, in all batches; None where that is not known.
        distinct_tokens: most different indices that an embedding is asked for in one backward pass;
            None where that is not known.
        untraceable: what to do with a network that cannot be traced: "refuse" raises a TraceError; "shape"
            bounds each matrix by min(m, n) alone and says so, so that audits and budgets still work. (Not by
            rows: where no graph is known, another batch may use a weight more often.)

    Raises:
        TraceError: the network cannot be traced, the loss is not a scalar, or backward hooks or functions
            with a backward of their own change gradients where the graph does not show it.
        ValueError: world_size, accumulation_steps, input_rank or distinct_tokens below 1, or another word
            for `untraceable`.
    """
    if world_size is None:
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    for name, count in (("world_size", world_size), ("accumulation_steps", accumulation_steps)):
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be 1 or more")
    for name, hint in (("input_rank", input_rank), ("distinct_tokens", distinct_tokens)):
        if hint is not None and hint < 1:
            raise ValueError(f"{name} is {hint}; it must be 1 or more, or None")

    if untraceable not in ("refuse", "shape"):
        raise ValueError(f"untraceable is {untraceable!r}; allowed are 'refuse' and 'shape'")

    model = unwrapped(model)
    inputs = (tuple(args), dict(kwargs or {}), tuple(targets))
    try:
        exported, parameters = trace(model, *inputs[:2], loss, targets, training)
    except LossError:
        raise
    except TraceError as error:
        if untraceable == "refuse":
            raise
        return _by_shape(model, inputs, world_size, accumulation_steps, training, str(error))
    given = user_inputs(exported, inputs)
    shapes = {placeholder: tuple(parameter.shape) for placeholder, parameter in parameters.items()}
    passes = accumulation_steps * world_size
    recipe = Recipe(_listed(model, parameters))
    exact = _Walk(
        exported, given, input_rank, shapes, passes, distinct_tokens, accumulation_steps, recipe, linear=False
    )
    linear = _Walk(
        exported, given, input_rank, shapes, passes, distinct_tokens, accumulation_steps, recipe, linear=True
    )

    # Tied weights have one placeholder under any of their names, so names alone would miss uses.
    by_storage: dict[int, list[str]] = defaultdict(list)
    for placeholder, parameter in parameters.items():
        by_storage[_storage(parameter)].append(placeholder)
    unseen = {
        _storage(tensor) for tensor in (*exported.constants.values(), *given.values()) if isinstance(tensor, Tensor)
    }
    names = dict(exported.graph_signature.inputs_to_parameters)
    entries = {}
    for name, parameter in named_matrices(model):
        storage, shape = _storage(parameter), matrix_shape(parameter.shape)
        if storage in unseen:
            reason = "full: it is captured, or given as an input, besides being a parameter"
            entries[name] = RankBound(min(shape), shape, reason, min(shape))
            continue
        axes = tuple(parameter.shape)
        bound, _ = exact.bound(by_storage[storage], shape, axes, accumulation_steps, names)
        relaxed, side = linear.bound(by_storage[storage], shape, axes, accumulation_steps, names)
        recipe.exact[name], recipe.linear[name] = exact.sides(bound), linear.sides(relaxed)
        entries[name] = replace(_with_linear_rank(bound, relaxed, side), bases=Bases(name, recipe))
    exact.limits.dimensions.forget()
    return Bounds(
        entries=entries,
        input_shapes=tuple(tuple(tensor.shape) for tensor in given.values()),
        world_size=world_size,
        accumulation_steps=accumulation_steps,
        training=training,
        unknown_ops=exact.tracer.unknown_ops,
    )


def _by_shape(
    model: nn.Module, inputs: Any, world_size: int, accumulation_steps: int, training: bool, why: str
) -> Bounds:
    """Bounds of a network of which nothing is known but its matrices."""
    entries = {}
    for name, parameter in named_matrices(model):
        shape = matrix_shape(parameter.shape)
        entries[name] = RankBound(min(shape), shape, f"full: min(m, n), the shape alone; {why}", min(shape))
    return Bounds(
        entries=entries,
        input_shapes=tuple(tuple(leaf.shape) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)),
        world_size=world_size,
        accumulation_steps=accumulation_steps,
        training=training,
    )


def _with_linear_rank(bound: RankBound, relaxed: RankBound, side: Side | None) -> RankBound:
    if relaxed.rank >= bound.rank:
        return replace(bound, linear_rank=bound.rank, certified_loss=0.0, certificate="proven")
    if side is None:  # several uses, each limited by another side
        return replace(bound, linear_rank=relaxed.rank)
    kind = "proven" if side.proven else "calibrated"
    return replace(bound, linear_rank=relaxed.rank, certified_loss=min(1.0, side.slack), certificate=kind)


def _listed(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """The names that `named_parameters()` gives the parameters of placeholders: tied ones have several."""
    listed = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
    return {
        placeholder: listed[id(parameter)] for placeholder, parameter in parameters.items() if id(parameter) in listed
    }


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # an address that tensors on the meta device have too


class _Walk:
    """One walk over the graph, and the bounds that come out of it."""

    def __init__(
        self,
        exported: ExportedProgram,
        given: Mapping[str, Tensor],
        input_rank: int | None,
        shapes: Mapping[str, tuple[int, ...]],
        passes: int,
        distinct_tokens: int | None,
        accumulation_steps: int,
        recipe: Recipe,
        *,
        linear: bool,
    ) -> None:
        dimensions = Dimensions(shapes, passes)
        self.tracer = GraphTracer(
            exported, given, input_rank, dimensions, linear=linear, accumulation_steps=accumulation_steps
        )
        self.limits = Limits(dimensions, passes, distinct_tokens)
        self._writer = Writer(recipe, self.tracer.ops.algebra)

    def bound(
        self,
        placeholders: Sequence[str],
        shape: tuple[int, int],
        axes: tuple[int, ...],
        accumulation: int,
        names: Mapping[str, str],
    ) -> tuple[RankBound, Side | None]:
        """The bound of one m × n parameter, from every use under any of its names."""
        m, n = shape
        uses = [use for name in placeholders for use in self.tracer.uses[name]]
        others = [value for name in placeholders for value in self.tracer.gradients[name]]
        whole = [value for value in others if value.kind is not Kind.ZERO]
        if whole and len(axes) > 2:
            reason = f"full: {whole[0].label} uses it, and has no rule for a weight"
            return RankBound(min(m, n), shape, reason, min(m, n)), None
        rows = None if whole else accumulation * sum(use.rows for use in uses)
        uses += [self._as_use(value, shape) for value in whole]
        if not uses:
            if not others and self.tracer.reaches_the_loss(placeholders):
                reason = "full: it reaches the loss by a way that no rule follows"
                return RankBound(min(m, n), shape, reason, min(m, n)), None
            return RankBound(0, shape, "the loss does not depend on it", 0, 0), None
        limit, (inputs, adjoint) = self.limits.of(uses, shape)
        spaces = Subspaces(inputs.generators, adjoint.generators, self.limits.dimensions, names) if not whole else None
        bound = RankBound(limit.rank, shape, limit.reason, limit.rank, rows, spaces=spaces)
        return bound, limit.side

    def sides(self, bound: RankBound) -> Sides:
        """How weights give the spaces of a bound, written into the recipe."""
        if bound.spaces is None:
            return Sides(None, None)
        m, n = bound.shape
        spaces = bound.spaces
        return Sides(
            self._writer.output(spaces.inputs, spaces.dimensions(spaces.inputs, n), n),
            self._writer.output(spaces.adjoint, spaces.dimensions(spaces.adjoint, m), m),
        )

    def _as_use(self, gradient: Value, shape: tuple[int, int]) -> Use:
        """A gradient that arrives as a tensor of the parameter's shape."""
        ops = self.tracer.ops
        rows = ops.features(gradient, shape, 1)
        columns = ops.any_rows(shape[0], gradient.label)
        return Use(replace(rows, balanced=frozenset()), columns, shape[0])

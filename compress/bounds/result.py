"""What `rank_bounds` returns."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from compress.bounds.bases import Bases
from compress.bounds.basis import Basis, Sizes
from compress.bounds.dimensions import Dimensions
from compress.bounds.spaces import Generator
from compress.matrix import look_up


@dataclass(frozen=True)
class RankBound:
    """An upper limit on the rank of one gradient's matrix view.

    Attributes:
        rank: no batch and no weights give the gradient a higher rank.
        shape: (m, n) of the matrix view.
        reason: what sets the rank, in words.
        linear_rank: the bound that would hold if every elementwise activation were a multiple of its
            input. No bound, but a rank that the gradient is near to; equal to `rank` where there is none.
        rows: rows of inputs (and of adjoints) that one worker contributes in a step, over all uses and
            accumulation steps; None where an op without a rule uses the parameter.
        certified_loss: the gradient lies within `certified_loss` · N_A · N_Δ of a matrix of `linear_rank`,
            in the Frobenius norm: N_A ≥ ‖A‖ and N_Δ ≥ ‖Δ‖ are products of the norms of weights with that of
            the input, or of the loss's adjoint (see docs/bounds.md). **Never relative to ‖G‖**: samples
            cancel in ΔᵀA, and no such certificate exists. None where several uses are limited by
            different sides.
        certificate: "proven" (Leaky-ReLU, for all weights and data), or "calibrated" (other activations
            and behind normalisation: the figure for normal data).
    """

    rank: int
    shape: tuple[int, int]
    reason: str
    linear_rank: int
    rows: int | None = None
    certified_loss: float | None = None
    certificate: str | None = None
    spaces: "Subspaces | None" = field(default=None, repr=False, compare=False)
    bases: Bases | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key.name: getattr(self, key.name) for key in fields(self) if key.repr}

    def path(self) -> list[str]:
        """Lines that tell how the bound came about: both sides, and what each of their spaces passes."""
        from compress.bounds.explain import path  # it needs this class's module for what it explains

        return path(self)

    def basis(self, parameters: Mapping[str, Tensor], *, linear: bool = False) -> Basis:
        """Orthonormal bases of the spaces that hold the gradient's rows and columns, from the weights alone.

        Every worker that holds the same weights gets the same bases, so a gradient can be sent as a
        projection (Bᵀ G, or Bᵀ G B where both are known) and nothing is lost.

        Args:
            parameters: the current weights by name, such as `dict(model.named_parameters())`, on any device.
            linear: the spaces that would hold it if every elementwise activation were a multiple of its input.

        Returns:
            Bases in the parameter's type and on its device; a side is None where its space is all there is,
            where data decide it (inputs of low rank, targets), or where it differs between workers
            (BatchNorm's statistics). See `Basis`.

        Raises:
            ValueError: no weights of that name are given, or not all that are needed.
        """
        if self.bases is None:
            return Basis()
        return self.bases.of(parameters, linear)

    def basis_sizes(self, *, linear: bool = False) -> Sizes:
        """How many columns `basis` has on each side, which no weights are needed for; None where there is none."""
        return self.bases.sides(linear).sizes if self.bases is not None else Sizes()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "spaces": None}


@dataclass(frozen=True, eq=False)
class Subspaces:
    """The spaces of all A and of all Δ of one parameter, as symbols, and what counts their dimensions."""

    inputs: tuple[Generator, ...]
    adjoint: tuple[Generator, ...]
    dimensions: Dimensions
    names: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Bounds(Mapping[str, RankBound]):
    """A read-only mapping from parameter name to `RankBound`, and what it was made for.

    Names are those of `named_parameters()`; `module.` and `_orig_mod.` prefixes are ignored in
    look-ups.

    Attributes:
        input_shapes: shapes of the tensors given as `args`, `kwargs` and `targets`, in that order.
        world_size: workers whose gradients are averaged.
        accumulation_steps: backward passes summed before an exchange.
        training: whether the network was traced in training mode.
        unknown_ops: how often each op without a rule occurs on a path to a weight.
    """

    entries: Mapping[str, RankBound]
    input_shapes: tuple[tuple[int, ...], ...]
    world_size: int
    accumulation_steps: int
    training: bool
    unknown_ops: Mapping[str, int] = field(default_factory=Counter)

    def __getitem__(self, name: str) -> RankBound:
        return self.entries[look_up(self.entries, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def check_world_size(self, world_size: int) -> None:
        """Refuse a world size that the bounds were not made for.

        Raises:
            ValueError: more or fewer workers contribute rows than the bounds count.
        """
        if world_size != self.world_size:
            raise ValueError(
                f"these bounds were made for world_size={self.world_size}, but {world_size} workers average "
                f"their gradients here; call rank_bounds(..., world_size={world_size})"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "world_size": self.world_size,
            "accumulation_steps": self.accumulation_steps,
            "training": self.training,
            "unknown_ops": dict(self.unknown_ops),
            "bounds": {name: bound.to_dict() for name, bound in self.entries.items()},
        }

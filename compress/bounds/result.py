"""What `rank_bounds` returns."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.matrix import look_up


@dataclass(frozen=True)
class RankBound:
    """An upper limit on the rank of one gradient's matrix view.

    Attributes:
        rank: no batch and no weights give the gradient a higher rank.
        shape: (m, n) of the matrix view.
        reason: what sets the rank, in words.
        linear_rank: the bound that would hold if every Leaky-ReLU had slope 1. For slopes below 1 it
            is the rank that a gradient is near to, not a bound; equal to `rank` where there is none.
        rows: rows of inputs (and of adjoints) that one worker contributes in a step, over all uses and
            accumulation steps; None where an op without a rule uses the parameter.
    """

    rank: int
    shape: tuple[int, int]
    reason: str
    linear_rank: int
    rows: int | None = None


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
            "bounds": {name: asdict(bound) for name, bound in self.entries.items()},
        }

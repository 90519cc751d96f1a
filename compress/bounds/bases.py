"""The bases of one parameter among those of its network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from compress.bounds.basis import Basis
from compress.bounds.evaluate import Evaluator
from compress.bounds.recipe import Recipe, Sides
from compress.matrix import canonical_name


@dataclass(frozen=True, eq=False)
class Bases:
    """What gives the bases of one parameter; it goes where bounds and plans go, by pickle too.

    Attributes:
        name: of the parameter.
        recipe: of all parameters of the network.
    """

    name: str
    recipe: Recipe

    def sides(self, linear: bool) -> Sides:
        """What is known of both sides, exactly, or if every elementwise activation were a multiple of its input."""
        return (self.recipe.linear if linear else self.recipe.exact)[self.name]

    def of(self, parameters: Mapping[str, Tensor], linear: bool) -> Basis:
        """The bases at these weights, in the type and on the device of the parameter."""
        sides = self.sides(linear)
        outputs = [side for side in sides if side is not None]
        evaluator = Evaluator(self.recipe, outputs)
        weights = chosen(parameters, evaluator.parameters | {self.name})
        like = weights[self.name]
        found = iter(evaluator(weights))
        return Basis(*(next(found).to(like.device, like.dtype) if side is not None else None for side in sides))


def chosen(parameters: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names, whatever prefixes DDP and torch.compile put before them.

    Raises:
        ValueError: one is not given.
    """
    given = {canonical_name(name): tensor.detach() for name, tensor in parameters.items()}
    given = {name.removeprefix("module."): tensor for name, tensor in given.items()} | given
    missing = sorted(set(names) - given.keys())
    if missing:
        raise ValueError(
            f"the weight {missing[0]} is needed and not among {list(parameters)[:3]}; give all of named_parameters()"
        )
    return {name: given[name] for name in names}

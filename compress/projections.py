"""Bases for one step: those that the methods of a plan project on, all computed at once."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from compress.bounds.bases import chosen
from compress.bounds.basis import Basis
from compress.bounds.evaluate import Evaluator
from compress.compressors.base import Fit
from compress.layers import untrusted_parameters
from compress.matrix import unwrapped


class Planned(Protocol):
    """What is read of a plan's assignment."""

    @property
    def fit(self) -> Fit: ...


class Projections:
    """The bases of a plan, evaluated at a model's current weights."""

    def __init__(self, model: nn.Module, plan: Mapping[str, Planned]) -> None:
        """Find what has to be computed.

        Raises:
            ValueError: a basis hangs on a weight that workers need not hold alike.
        """
        planned = {name: given.fit.projection for name, given in plan.items()}
        self._wanted = {name: projection for name, projection in planned.items() if projection is not None}
        self._evaluators: list[tuple[Evaluator, list[tuple[str, bool]]]] = []
        recipes = {id(wanted.bases.recipe): wanted.bases.recipe for wanted in self._wanted.values()}
        for recipe in recipes.values():
            mine = [name for name, wanted in self._wanted.items() if wanted.bases.recipe is recipe]
            sides = [(name, side, i == 0) for name in mine for i, side in enumerate(self._wanted[name].sides)]
            outputs = [side for _, side, _ in sides if side is not None]
            owners = [(name, inputs) for name, side, inputs in sides if side is not None]
            self._evaluators.append((Evaluator(recipe, outputs), owners))
        # Frozen weights may be part of a space too, and tied ones go by any of their names.
        everything = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        names = set().union(*(evaluator.parameters for evaluator, _ in self._evaluators))
        self._weights = chosen(everything, names | self._wanted.keys())
        odd = sorted(names & untrusted_parameters(model))
        if odd:
            raise ValueError(
                f"{odd[0]} is ignored by DistributedDataParallel, so workers may hold other values, and bases that "
                f"hang on it would differ; let DDP have it, or leave 'subspace' out of the candidates"
            )

    def __call__(self) -> dict[str, Basis]:
        """The bases at the current weights, by parameter, in the type that projections are computed in."""
        found: dict[str, Basis] = dict.fromkeys(self._wanted, Basis())
        for evaluator, owners in self._evaluators:
            for (name, inputs), basis in zip(owners, evaluator(self._weights), strict=True):
                weight = self._weights[name]
                basis = basis.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
                found[name] = found[name]._replace(**{"inputs" if inputs else "adjoint": basis})
        return found

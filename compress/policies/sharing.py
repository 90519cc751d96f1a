"""A budget shared among matrices so that least is lost: a multiple-choice knapsack."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_ALIKE = 1e-9
"""Rates that differ by less are alike: roundoff shall not join two small steps to one that does not fit."""


@dataclass(frozen=True)
class Option:
    """What one matrix may get: a rank, its bytes, and what is lost at it."""

    rank: int
    bytes: float
    lost: float


@dataclass(frozen=True)
class Shared:
    """The options chosen, one for each matrix, and by how much what they lose may exceed the least possible."""

    chosen: tuple[Option, ...]
    gap: float


@dataclass(frozen=True)
class _Step:
    """From one corner of a matrix's convex hull to the next."""

    matrix: int
    end: Option
    bytes: float
    rate: float


def share(matrices: Sequence[Sequence[Option]], budget: float) -> Shared:
    """Choose one option for each matrix, within the budget, so that Σ lost is small.

    1. Begin with each matrix's cheapest option.
    2. Along the lower convex hulls of (bytes, lost), take the step of the highest gain per byte that fits. Up to the
       first that does not fit, this is the optimum for the bytes spent; with the fitting fraction of that step it is
       the optimum of the relaxed problem (Sinha and Zoltners 1979), and no choice loses less: that gives `gap`.
    3. Spend what remains on whatever single change gains most.

    Raises:
        ValueError: the cheapest options exceed the budget.
    """
    fronts = [_front(options) for options in matrices]
    chosen = [front[0] for front in fronts]
    spare = budget - sum(option.bytes for option in chosen)
    if spare < 0:
        raise ValueError(f"{budget:g} bytes are too few; the least is {budget - spare:g}")
    steps = [step for index, front in enumerate(fronts) for step in _steps(index, front)]
    relaxed: float | None = None
    stuck = set()  # a hull has corners in order: whoever cannot take one takes none after it
    for step in sorted(steps, key=lambda step: -step.rate):
        if step.matrix in stuck:
            continue
        if step.bytes <= spare:
            chosen[step.matrix], spare = step.end, spare - step.bytes
            continue
        stuck.add(step.matrix)
        if relaxed is None:
            relaxed = sum(option.lost for option in chosen) - step.rate * spare
    while True:
        changes = [
            (chosen[index].lost - option.lost, index, option)
            for index, front in enumerate(fronts)
            for option in front
            if option.lost < chosen[index].lost and option.bytes - chosen[index].bytes <= spare
        ]
        if not changes:
            break
        _, index, option = max(changes, key=lambda change: (change[0], -change[1]))
        spare -= option.bytes - chosen[index].bytes
        chosen[index] = option
    lost = sum(option.lost for option in chosen)
    return Shared(tuple(chosen), 0.0 if relaxed is None else max(0.0, lost - relaxed))


def _front(options: Sequence[Option]) -> list[Option]:
    """The options that none beats in both bytes and what is lost, by rising bytes."""
    front: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.lost, option.rank)):
        if not front or option.lost < front[-1].lost:
            front.append(option)
    return front


def _steps(matrix: int, front: Sequence[Option]) -> list[_Step]:
    """The sides of the front's lower convex hull, as short as can be; their gains per byte do not rise."""
    corners = [front[0]]
    for option in front[1:]:
        while len(corners) > 1 and _rate(*corners[-2:]) < (1 - _ALIKE) * _rate(corners[-1], option):
            corners.pop()
        corners.append(option)
    steps: list[_Step] = []
    for before, end in pairwise(corners):
        rate = min(_rate(before, end), steps[-1].rate if steps else math.inf)
        steps.append(_Step(matrix, end, end.bytes - before.bytes, rate))
    return steps


def _rate(before: Option, end: Option) -> float:
    return (before.lost - end.lost) / (end.bytes - before.bytes)

"""The rank of a matrix, measured."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from compress.audit.measures import RankMeasurement
from compress.audit.task import RankTask, decomposed, make_task, sketched

T = TypeVar("T")

_BATCH = 2**18
"""Entries that are decomposed together at most: beyond, a call's own cost no longer counts."""


def measure_rank(
    matrix: Tensor,
    *,
    bound: int | None = None,
    noise_floor: float | None = None,
    full_spectrum: bool = False,
    dtype: torch.dtype | None = None,
    affordable: float = math.inf,
) -> RankMeasurement:
    """Measure the rank of a matrix, on its device.

    1. With a bound well below min(m, n), sketch the matrix with a few more columns than the bound.
    2. Form the residual. If it proves that the sketch holds all that is above the tolerance, and all but 1e-4 of
       the energy, that is the answer.
    3. Else, and without a bound, decompose the matrix in full.

    Args:
        matrix: m × n, real, finite.
        bound: how large the rank is thought to be at most. It need not hold: a wrong one costs time alone.
        noise_floor: absolute size up to which a singular value is known to be roundoff, such as
            ε·‖A‖·‖Δ‖ for a product ΔᵀA, which cancellation can make large beside σ_1; None for none.
        full_spectrum: find all singular values in any case, and with them `paper` and `effective`.
        dtype: the type that the matrix was computed in, whose roundoff it carries if it is the coarser one;
            None means its own.
        affordable: the largest m·n·min(m, n) that may be decomposed in full. Of larger matrices a sketch tells what
            it can, `certified` or not; 1e9 takes 0.1 s or so on one core.

    Raises:
        ValueError: not two axes, not of real floating-point numbers, an entry that is NaN or infinite, or
            a bound or a noise floor that is negative.
    """
    (found,) = measure_ranks(
        [matrix],
        bounds=[bound],
        noise_floors=[noise_floor],
        full_spectrum=full_spectrum,
        dtypes=[dtype],
        affordable=affordable,
    )
    return found


def measure_ranks(
    matrices: Sequence[Tensor],
    *,
    bounds: Sequence[int | None] | None = None,
    noise_floors: Sequence[float | None] | None = None,
    full_spectrum: bool = False,
    dtypes: Sequence[torch.dtype | None] | None = None,
    affordable: float = math.inf,
) -> list[RankMeasurement]:
    """Measure the ranks of many matrices as `measure_rank` does; small ones of one shape are decomposed together.

    Args:
        matrices: each as for `measure_rank`; shapes, types and devices may differ.
        bounds: one for each matrix, as for `measure_rank`; None where none is known of any.
        noise_floors: likewise.
        full_spectrum: as for `measure_rank`, of all.
        dtypes: one for each matrix, as for `measure_rank`; None for the matrices' own.
        affordable: as for `measure_rank`, of each.

    Returns:
        In the order of the matrices.

    Raises:
        ValueError: as `measure_rank`, or not as many bounds, noise floors or types as matrices.
    """
    count = len(matrices)
    tasks = [
        make_task(matrix, bound, floor, dtype, math.inf if full_spectrum else affordable)
        for matrix, bound, floor, dtype in zip(
            matrices,
            _one_each(bounds, count, "bounds"),
            _one_each(noise_floors, count, "noise_floors"),
            _one_each(dtypes, count, "dtypes"),
            strict=True,
        )
    ]
    found = {} if full_spectrum else {i: rank for i, task in enumerate(tasks) if (rank := sketched(task))}
    for indices in _batches({i: task for i, task in enumerate(tasks) if i not in found}):
        found.update(zip(indices, decomposed([tasks[i] for i in indices]), strict=True))
    return [found[i] for i in range(count)]


def _one_each(given: Sequence[T | None] | None, count: int, name: str) -> Sequence[T | None]:
    if given is None:
        return [None] * count
    if len(given) != count:
        raise ValueError(f"{name} must hold one entry for each of {count} matrices, got {len(given)}")
    return given


def _batches(tasks: dict[int, RankTask]) -> Iterator[list[int]]:
    """Indices of tasks that are decomposed together: of one shape, type and device."""
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, task in tasks.items():
        alike[task.shape, task.matrix.dtype, task.matrix.device, task.dtype].append(i)
    for indices in alike.values():
        size = max(1, _BATCH // max(1, tasks[indices[0]].matrix.numel()))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]

"""One matrix whose rank is asked for, and the two ways to find it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.audit.measures import RankMeasurement, Spectra
from compress.audit.spectrum import all_singular_values, rescaled, sketch

_OVERSAMPLING = 8
"""Columns of a sketch beyond the bound: with so many more a random one misses nothing that counts."""

_SKETCHED_FROM = 256
_SKETCHED_SHARE = 6
"""A sketch is tried where min(m, n) is so large, and so many times its columns: one in vain costs a quarter at most."""

_LEFT_OUT = 1e-2
"""Share of ‖G‖_F up to which what a sketch leaves out, 1e-4 of the energy, counts for nothing in any measure."""


_GLIMPSED = 128
"""Singular values that a sketch finds at most where all would cost too much."""


@dataclass(frozen=True, eq=False)
class RankTask:
    """A matrix to measure, of two axes, float32 or float64, and the type whose roundoff it carries.

    Where `costly`, no decomposition in full is allowed.
    """

    matrix: Tensor
    bound: int | None
    noise_floor: float
    dtype: torch.dtype
    costly: bool

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return m, n


def make_task(
    matrix: Tensor, bound: int | None, noise_floor: float | None, dtype: torch.dtype | None, affordable: float
) -> RankTask:
    """Check what was given to `measure_rank`, whose docstring says what is allowed."""
    if matrix.dim() != 2:
        raise ValueError(f"a rank is measured of a matrix of two axes, got shape {tuple(matrix.shape)}")
    if not matrix.dtype.is_floating_point:
        raise ValueError(f"a rank is measured of a matrix of real floating-point numbers, got {matrix.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a type of real floating-point numbers, got {dtype}")
    if bound is not None and bound < 0:
        raise ValueError(f"bound must be 0 or more, or None where none is known, got {bound}")
    if noise_floor is not None and not 0 <= noise_floor < math.inf:
        raise ValueError(f"noise_floor must be finite and 0 or more, or None for none, got {noise_floor}")
    working = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    coarser = max(matrix.dtype, dtype or matrix.dtype, key=lambda kind: torch.finfo(kind).eps)
    costly = matrix.numel() * min(matrix.shape) > affordable
    return RankTask(working, bound, noise_floor or 0.0, coarser, costly)


def sketched(task: RankTask) -> RankMeasurement | None:
    """What a sketch proves; None if that is too little, or none is worth a try.

    Where the task is costly, what it shows, proven or not.
    """
    least = min(task.matrix.shape)
    bound = least if task.bound is None else task.bound
    columns = (min(bound, _GLIMPSED) if task.costly else bound) + _OVERSAMPLING
    if least < (2 * columns if task.costly else max(_SKETCHED_FROM, _SKETCHED_SHARE * columns)):
        return None
    batch, scales = rescaled(task.matrix[None])
    seen = sketch(batch[0], columns)
    values = seen.singular_values
    spectra = Spectra(values[None], scales, task.dtype, task.shape)
    tolerances = spectra.tolerances([task.noise_floor])
    if bool(values[-1] > tolerances) and not task.costly:  # there may be more of them, whatever the residual is
        return None
    residual = seen.residual()
    # Beyond the sketch's values the matrix has others, which the sketch takes for 0.
    margin = float((torch.nn.functional.pad(values, (0, 1)) - tolerances).abs().min())
    proven = not bool(values[-1] > tolerances) and residual <= min(margin, _LEFT_OUT * float(values.norm()))
    if not proven and not task.costly:
        return None
    return spectra.measure(tolerances, left_out=residual, certified=proven)[0]


def decomposed(tasks: Sequence[RankTask]) -> list[RankMeasurement]:
    """All singular values, of tasks that are alike but for bounds and noise floors."""
    first = tasks[0]
    batch = torch.stack([task.matrix for task in tasks]) if len(tasks) > 1 else first.matrix[None]
    batch, scales = rescaled(batch)
    values, own = all_singular_values(batch)
    spectra = Spectra(values, scales, first.dtype, first.shape)
    return spectra.measure(spectra.tolerances([task.noise_floor for task in tasks]), own)

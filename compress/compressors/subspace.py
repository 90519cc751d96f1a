"""Subspace: project on bases that every worker computes from the weights it holds, and send that."""

import logging
from collections.abc import Generator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.bounds.basis import Basis
from compress.compressors.base import (
    AllReduceMean,
    Compressor,
    Fit,
    Matrix,
    Payload,
    Projection,
    Rounds,
    Sizing,
    Unfit,
    Work,
)
from compress.compressors.error_feedback import gather, keep, remember
from compress.compressors.work import READ, READ_COLUMNS, WRITE, orthonormalising
from compress.exchange import Request
from compress.factor_products import expand, times_columns, times_rows

logger = logging.getLogger(__name__)

Steps = Generator[Request, Tensor, Tensor]
"""A part of an algorithm, which ends with the m × n gradient to deliver."""


class Subspace(Compressor):
    """Send BᵀM, MB, or B_ΔᵀMB_A where both sides are known: one all-reduce, and M comes out again.

    M is the m × n gradient, B_Δ (m × k) and B_A (n × k) orthonormal bases of the spaces that hold its columns and
    rows. They are functions of the weights alone, so every worker has the same.

    In float32 and float64 nothing is lost, and nothing kept between steps. Each worker checks in each step that its
    gradient lies in the spaces; where one does not, all send that weight dense, from that step on.

    In coarser types, and where the space is only nearly exact (`near`), what lies outside a fixed space would never be
    sent. So `extra` directions follow the remainder E, which is M less its projection, by one half of a power
    iteration in each step: UᵀE gives V, and in the next step EV gives U. One of them is drawn at random, for what
    cancels in the mean over workers, which the iteration does not see. Each worker adds what it did not send to its
    next gradient (error feedback).

    Attributes:
        near: take the space that would be exact if every elementwise activation were a multiple of its input, where
            it is smaller; not lossless.
        extra: directions of the remainder in a step that is not lossless.
        widest: most columns of a basis: a wider one costs more to compute than it saves.
    """

    kind: Literal["subspace"] = "subspace"
    near: bool = False
    extra: Annotated[int, Field(ge=2)] = 4
    widest: Annotated[int, Field(ge=1)] = 256

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        if sizing.bases is None:
            return Unfit("the spaces of its gradient are unknown; pass bounds=")
        readings = [Projection(sizing.bases, linear) for linear in (False, True)[: 1 + self.near]]
        readings = [reading for reading in readings if any(side is not None for side in reading.sides)]
        if not readings:
            return Unfit("weights alone give no basis: each side is full, or data or a worker's statistics decide it")
        projection = min(readings, key=lambda reading: _numbers(reading, *sizing.matrix.matrix))
        sides = projection.sides
        columns = [side.columns for side in sides if side is not None]
        if max(columns) > self.widest:
            return Unfit(f"a basis has {max(columns)} columns; widest={self.widest} allows fewer")
        m, n = sizing.matrix.matrix
        lossless = not projection.linear and sizing.exact_type
        extra = 0 if lossless else min(self.extra, m, n)
        known = " and ".join(
            f"{side.columns} of {width} for the {word}"
            for side, width, word in ((sides.inputs, n, "inputs"), (sides.adjoint, m, "adjoints"))
            if side is not None
        )
        return Fit(
            (Payload(AllReduceMean, _numbers(projection, m, n) + (1 if lossless else extra * max(m, n))),),
            rank=min(*columns, m, n) if lossless else min(min(columns) + extra, m, n),
            lossless=lossless,
            columns=extra,
            reason=f"{'near ' if projection.linear else ''}spaces from the weights: {known}",
            projection=projection,
        )

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        assert fit.projection is not None  # as `fit` gives it
        (m, n), sides = sizing.matrix.matrix, fit.projection.sides
        work = Work(calls=25)
        for side, width in zip(sides, (n, m), strict=True):
            if side is not None:
                work = work + fit.projection.basis_work(side, width)
        # One side's product reads the gradient, and the last one writes it; both have the fewest columns there are.
        narrow = max(side.columns for side in sides if side is not None)
        project = (READ if sides.inputs is not None else READ_COLUMNS) + WRITE + Work(flops=4 * m * n * narrow)
        if fit.lossless:
            return work + project
        # The remainder's directions: their products, what is kept, what is delivered.
        follow = Work(flops=6 * m * n * fit.columns, orthonormalise=orthonormalising(max(m, n), fit.columns), calls=40)
        return work + project + READ_COLUMNS + WRITE + WRITE + WRITE + Work(passes=8) + follow

    def feeds_back(self, matrix: Matrix) -> bool:
        return not matrix.fit.lossless

    def rounds(self, matrix: Matrix) -> Rounds:
        if self.feeds_back(matrix):
            delivered = yield from self._followed(matrix)
        elif "sent_dense" in matrix.memory:
            delivered = yield AllReduceMean(matrix.gradients[matrix.info.name], in_place=True)
        else:
            delivered = yield from self._exact(matrix, matrix.gradient)
        return {matrix.info.name: delivered}

    def _exact(self, matrix: Matrix, gradient: Tensor) -> Steps:
        """The mean from its coefficients; from the gradients themselves where one does not lie in the spaces."""
        C, fits = _checked_coefficients(matrix.basis, gradient)
        mean = yield AllReduceMean(torch.cat([C.reshape(-1), torch.where(fits, 0.0, 1.0).to(C.dtype).view(1)]))
        if not bool(mean[-1] > 0):
            return _expanded(matrix.basis, mean[:-1].view(C.shape), gradient)
        matrix.memory["sent_dense"] = torch.tensor(True)
        logger.warning(
            "%s: its gradient does not lie in the spaces that the bounds give (another loss, another network, "
            "autocast or TF32); it is sent dense from now on",
            matrix.info.name,
        )
        return (yield AllReduceMean(matrix.gradients[matrix.info.name], in_place=True))

    def _followed(self, matrix: Matrix) -> Steps:
        """The mean of M, with the remainder's directions beside the basis; what is not sent goes to the memory."""
        basis, left, sent_as = matrix.basis, matrix.step % 2 == 0, matrix.info.dtype
        M = gather(matrix)
        D = self._directions(matrix, M, left)
        # C is as _coefficients gives it, F (extra, n or m) is UᵀE or (EV)ᵀ.
        C = _coefficients(basis, M)
        F = D.mT @ _turned(M, left) - _seen(basis, C, D, left)
        spare = F.new_zeros(len(F) * max(M.shape) - F.numel())  # every step sends as much
        own = torch.cat([C.reshape(-1), F.reshape(-1), spare]).to(sent_as)
        mean = (yield AllReduceMean(own)).to(M.dtype)

        def split(numbers: Tensor) -> tuple[Tensor, Tensor]:
            return numbers[: C.numel()].view(C.shape), numbers[C.numel() : C.numel() + F.numel()].view(F.shape)

        own_C, own_F = split(own.to(M.dtype))  # as they were rounded
        rest = M - _expanded(basis, own_C)
        _turned(rest, left).addmm_(D, own_F, alpha=-1)
        keep(matrix, rest)
        mean_C, mean_F = split(mean)
        remember(matrix, "right" if left else "left", mean_F.mT)
        delivered = _expanded(basis, mean_C, M)
        _turned(delivered, left).addmm_(D, mean_F)
        return delivered

    def _directions(self, matrix: Matrix, G: Tensor, left: bool) -> Tensor:
        """Orthonormal U (m × extra), or V (n × extra): the last step's answer, and one at random."""
        columns = matrix.fit.columns
        fresh = matrix.normal(_turned(G, left).shape[0], columns, dtype=G.dtype, device=G.device)
        kept = matrix.memory.get("left" if left else "right", fresh)
        size = kept.norm(dim=0)
        alive = (size > 0) & size.isfinite()
        alive[-1] = False
        directions: Tensor = torch.linalg.qr(torch.where(alive, kept / size, fresh)).Q
        return directions


def _numbers(projection: Projection, m: int, n: int) -> int:
    """How many numbers the coefficients of an m × n matrix are."""
    inputs, adjoint = projection.sides.sizes
    return (m if adjoint is None else adjoint) * (n if inputs is None else inputs)


def _coefficients(basis: Basis, M: Tensor) -> Tensor:
    """B_Δᵀ M B_A, without the side that is not known; M (m × n) is read once."""
    if basis.inputs is None:
        return M if basis.adjoint is None else times_columns(basis.adjoint.mT.contiguous(), M)
    C = times_rows(M, basis.inputs.mT.contiguous()).mT
    return C if basis.adjoint is None else basis.adjoint.mT @ C


def _checked_coefficients(basis: Basis, G: Tensor) -> tuple[Tensor, Tensor]:
    """B_Δᵀ G B_A, and whether G = B_Δ C B_Aᵀ on one fixed vector, up to roundoff: a tensor of one truth value.

    What is not finite passes: it is delivered, as dense would deliver it.
    """
    by_rows = basis.inputs is not None  # the vector meets the side that the product begins with, which reads G anyway
    first = basis.inputs if by_rows else basis.adjoint
    assert first is not None  # a method that projects has a side
    probe = torch.linspace(0.5, 1.5, len(first), dtype=G.dtype, device=G.device)
    probe[1::2] *= -1.0
    beside = torch.cat([first, probe.unsqueeze(1)], dim=1).mT.contiguous()
    products = times_rows(G, beside) if by_rows else times_columns(beside, G)
    C, seen = products[:-1], products[-1]
    expected = (probe @ first) @ C
    if by_rows:
        C = C.mT
        if basis.adjoint is not None:
            C = basis.adjoint.mT @ C
            expected = basis.adjoint @ (C @ (probe @ first))
    tolerance = torch.finfo(G.dtype).eps ** 0.6  # 7e-5 in float32, 4e-10 in float64
    return C, torch.logical_not((seen - expected).norm() > tolerance * C.norm() * probe.norm())


def _expanded(basis: Basis, C: Tensor, out: Tensor | None = None) -> Tensor:
    """B_Δ C B_Aᵀ (m × n), written over `out` where it is given."""
    if basis.inputs is None:
        assert basis.adjoint is not None
        left, right = basis.adjoint, C
    else:
        left, right = C if basis.adjoint is None else basis.adjoint @ C, basis.inputs.mT
    if out is None:
        out = left.new_empty(left.shape[0], right.shape[1])
    return expand(left.mT, right, out)


def _seen(basis: Basis, C: Tensor, D: Tensor, left: bool) -> Tensor:
    """What directions D see of the projection: Uᵀ B_Δ C B_Aᵀ, or its mirror image."""
    near, far = (basis.adjoint, basis.inputs) if left else (basis.inputs, basis.adjoint)
    seen = (D.mT if near is None else D.mT @ near) @ _turned(C, left)
    return seen if far is None else seen @ far.mT


def _turned(M: Tensor, left: bool) -> Tensor:
    """The matrix, or its transpose where directions are on the right."""
    return M if left else M.mT

"""PowerSGD (Vogels et al. 2019): subspace iteration, two all-reduces of low-rank factors each time."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.compressors.base import (
    AllReduceMean,
    Compressor,
    Fit,
    Matrix,
    Orthonormalise,
    Payload,
    Rounds,
    Sizing,
    Unfit,
    Work,
)
from compress.compressors.error_feedback import gather, keep_rest, remember, working_copy
from compress.compressors.work import READ, READ_COLUMNS, SUBTRACT, WRITE, orthonormalising
from compress.factor_products import expand, times_columns, times_rows


class PowerSGD(Compressor):
    """Send P = MQ, then MᵀP, with M the m × n gradient plus what error feedback kept.

    Where the plan certifies the rank lossless, Q is drawn afresh in each step with `oversample` columns
    more than the bound, and nothing is kept between steps: one iteration from a generic Q is then exact,
    from last step's Q it need not be. Elsewhere Q is last step's (warm start), and each worker keeps
    its own M − P(PᵀM) and adds it to its next gradient (error feedback).

    Attributes:
        oversample: columns beyond the bound, where the plan is certified lossless.
        iterations: of subspace iteration in a step; each takes two all-reduces.
    """

    ranked = True

    kind: Literal["powersgd"] = "powersgd"
    oversample: Annotated[int, Field(ge=0)] = 4
    iterations: Annotated[int, Field(ge=1)] = 1

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        if sizing.rank is None:
            return Unfit("powersgd needs a rank; use policy 'fixed' or 'bound'")
        m, n = sizing.matrix.matrix
        columns = min(sizing.rank + (self.oversample if sizing.lossless else 0), m, n)
        payloads = (Payload(AllReduceMean, m * columns), Payload(AllReduceMean, n * columns))
        return Fit(payloads * self.iterations, rank=min(sizing.rank, m, n), lossless=sizing.lossless, columns=columns)

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        (m, n), k = sizing.matrix.matrix, fit.columns
        products = 2 * self.iterations + (1 if fit.lossless else 2)
        work = WRITE + Work(flops=products * 2 * m * n * k, calls=4)
        for _ in range(self.iterations):
            work = work + READ + READ_COLUMNS + Work(orthonormalise=orthonormalising(m, k), calls=8)
        if not fit.lossless:  # adds the residual, and keeps the rest
            work = work + SUBTRACT + Work(passes=2, calls=8)
        return work

    def feeds_back(self, matrix: Matrix) -> bool:
        return not matrix.certified

    def rounds(self, matrix: Matrix) -> Rounds:
        # What is sent is alike on all workers, whichever of them take their step for certified.
        keeps = self.feeds_back(matrix)
        M = gather(matrix) if keeps else working_copy(matrix)
        sent = matrix.info.dtype
        Q = _start(matrix, M)  # factors lie as rows: Q is (columns, n), P is (columns, m)
        for _ in range(self.iterations):
            P = yield AllReduceMean(times_rows(M, Q).to(sent))
            P = yield Orthonormalise(P.to(M.dtype))
            own_Q = times_columns(P, M).to(sent)
            Q = (yield AllReduceMean(own_Q)).to(M.dtype)
        if keeps:
            keep_rest(matrix, M, P, own_Q.to(M.dtype))
        if not matrix.fit.lossless:
            remember(matrix, "Q", Q)
        return {matrix.info.name: expand(P, Q, out=M)}


def _start(matrix: Matrix, M: Tensor) -> Tensor:
    """Q to begin with, columns × n: a fresh one where the plan is lossless, else last step's as far as it goes."""
    columns, n = matrix.fit.columns, M.shape[1]
    warm = matrix.memory.get("Q")
    if matrix.fit.lossless or warm is None:
        return matrix.normal(columns, n, dtype=M.dtype, device=M.device)
    lengths = torch.linalg.vector_norm(warm, dim=1)
    if len(warm) > columns:  # the rank has fallen: the columns that carried most survive
        best = lengths.argsort(descending=True, stable=True)[:columns]
        warm, lengths = warm[best], lengths[best]
    # A column that carried nothing says nothing of where to look, perhaps for ever: it is drawn anew.
    alive = lengths > torch.finfo(M.dtype).eps * n * lengths.amax()
    unit: Tensor = warm / lengths.clamp_min(torch.finfo(M.dtype).tiny)[:, None]
    if len(warm) == columns and M.device.type == "cpu" and bool(alive.all()):
        return unit
    fresh = matrix.normal(columns, n, dtype=M.dtype, device=M.device)
    fresh = fresh / torch.linalg.vector_norm(fresh, dim=1, keepdim=True)
    return torch.cat([torch.where(alive[:, None], unit, fresh[: len(warm)]), fresh[len(warm) :]])

"""PowerSGD (Vogels et al. 2019): one step of subspace iteration, two all-reduces of low-rank factors."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit

_COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Types too coarse for orthogonalisation, and the type it is done in."""


class PowerSGD(Compressor):
    """Send P = MQ, then MᵀP, with M the m × n gradient plus what error feedback kept.

    Where the plan certifies the rank lossless, Q is drawn afresh in each step with `oversample` columns
    more than the bound, and nothing is kept between steps: one iteration from a generic Q is then exact,
    from last step's Q it need not be. Elsewhere Q is last step's (warm start), and each worker keeps
    its own M − P(PᵀM) and adds it to its next gradient (error feedback, true to the worker: keeping
    M minus the *global* approximation lets residuals grow without bound).
    """

    ranked = True

    kind: Literal["powersgd"] = "powersgd"
    oversample: Annotated[int, Field(ge=0)] = 4

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        if sizing.rank is None:
            return Unfit("powersgd needs a rank; use policy 'fixed' or 'bound'")
        m, n = sizing.matrix.matrix
        exact_type = sizing.matrix.dtype in (torch.float32, torch.float64)
        lossless = exact_type and sizing.bound is not None and sizing.rank >= sizing.bound
        columns = min(sizing.rank + (self.oversample if lossless else 0), m, n)
        payloads = (Payload(AllReduceMean, m * columns), Payload(AllReduceMean, n * columns))
        return Fit(payloads, rank=min(sizing.rank, m, n), lossless=lossless, columns=columns)

    def rounds(self, matrix: Matrix) -> Rounds:
        gradient = matrix.gradient
        M = gradient.to(_COMPUTE.get(gradient.dtype, gradient.dtype))
        residual = self.error_feedback(matrix)
        if residual is not None:
            M = M + residual

        # P is (m, columns)
        P = yield AllReduceMean((M @ self._start(matrix, M)).to(gradient.dtype))
        P, _ = torch.linalg.qr(P.to(M.dtype))
        # Q is (n, columns)
        local_Q = M.mT @ P
        Q = (yield AllReduceMean(local_Q.to(gradient.dtype))).to(M.dtype)

        if not matrix.fit.lossless:
            matrix.memory["residual"] = M - P @ local_Q.mT
            matrix.memory["Q"] = Q.clone()
        delivered = (P @ Q.mT).to(gradient.dtype)
        return {matrix.info.name: delivered.view(matrix.info.shape)}

    def _start(self, matrix: Matrix, M: Tensor) -> Tensor:
        """Q to begin with, n × columns: a fresh one, or last step's where that is not zero."""
        fresh = matrix.normal(M.shape[1], matrix.fit.columns, dtype=M.dtype, device=M.device)
        if matrix.fit.lossless or "Q" not in matrix.memory:
            return fresh
        warm = matrix.memory["Q"]
        # A zero gradient leaves Q zero, and then P says nothing of M, perhaps for ever.
        return torch.where(warm.abs().amax(dim=0) > 0, warm, fresh)

    def error_feedback(self, matrix: Matrix) -> Tensor | None:
        return None if matrix.fit.lossless else matrix.memory.get("residual")

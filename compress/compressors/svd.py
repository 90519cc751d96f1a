"""SVD: the best approximation of a rank, as a yardstick; it saves no bytes."""

from typing import Literal

import torch
from torch import Tensor

from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work
from compress.compressors.error_feedback import gather, keep, working_copy


class SVD(Compressor):
    """Average M densely and deliver its truncated singular value decomposition; M is gradient plus residual.

    No matrix of that rank is nearer (Eckart and Young 1936), so no method can have a smaller compression error
    for the same M. Error feedback keeps the remainder of the mean, alike on all workers, unless the plan is
    certified lossless.
    """

    ranked = True

    kind: Literal["svd"] = "svd"

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        if sizing.rank is None:
            return Unfit("svd needs a rank; use policy 'fixed' or 'bound'")
        m, n = sizing.matrix.matrix
        return Fit(
            (Payload(AllReduceMean, m * n, in_place=True),), rank=min(sizing.rank, m, n), lossless=sizing.lossless
        )

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        m, n = sizing.matrix.matrix
        return Work(passes=10, flops=2 * m * n * fit.rank, svd=m * n * min(m, n), calls=15)

    def feeds_back(self, matrix: Matrix) -> bool:
        return not matrix.certified

    def rounds(self, matrix: Matrix) -> Rounds:
        keeps = self.feeds_back(matrix)
        M = gather(matrix) if keeps else working_copy(matrix)
        mean = (yield AllReduceMean(M.to(matrix.info.dtype), in_place=True)).to(M.dtype)
        if not bool(matrix.finite):  # the decomposition would fail; and the step is lost
            return {matrix.info.name: mean}
        delivered = truncated(mean, matrix.fit.rank)
        if keeps:
            keep(matrix, mean - delivered)
        return {matrix.info.name: delivered}


def truncated(M: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most this rank, m × n."""
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    nearest: Tensor = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    return nearest

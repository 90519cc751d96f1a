"""rank-dAD (Baker et al. 2021): each worker sends r factors of its own ΔᵀA, which it never forms."""

import logging
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from compress.compressors.base import AllGather, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work
from compress.compressors.dad import UNCAPTURED
from compress.compressors.error_feedback import compute_dtype
from compress.compressors.factors import (
    Beside,
    header_numbers,
    local_gradients,
    mean_of,
    product_of_rows,
    read_headers,
)
from compress.compressors.subspace_iteration import subspace_iteration
from compress.compressors.work import WRITE, backward_product, orthonormalising
from compress.matrix import as_matrix

logger = logging.getLogger(__name__)

THIN = 3
"""Torch's products of two thin matrices take so many times as long as their flops say."""


class RankDAD(Compressor):
    """Gather U (m × r) and V (n × r) from all workers; the mean of their U Vᵀ is delivered.

    1. Each worker finds U Vᵀ ≈ ΔᵀA by subspace iteration on its rows: G V = Δᵀ(A V), Gᵀ U = Aᵀ(Δ U). No more
       than r rows are sent as they are.
    2. One all-gather brings all workers' factors, and the sums of their adjoints: the bias is exact.
    3. The mean over S workers has rank S·r or less.

    It is lossless where r reaches the architecture's bound: a bound that holds for all batches of the workers
    holds where all have the batch of one, so each worker's own gradient has no higher rank. Below the bound
    what is lost is lost: no error feedback is kept.

    What arrives as a gradient beside A and Δ is averaged dense in the same step and added; from then on each
    worker forms its gradient, and sends r factors of that.

    Attributes:
        iterations: of the subspace iteration, at most.
        tolerance: θ, the growth of ‖U Vᵀ‖ relative to itself at which iteration stops. (The paper looks at
            the change of a vector, which never settles where singular values are equal.) 0 for none.
        oversample: columns beyond r during the iteration, which bring it nearer and are not sent. On GPUs
            `tolerance: 0, oversample: 0` never waits for the device before sending.
    """

    ranked = True
    captures = True

    kind: Literal["rank_dad"] = "rank_dad"
    iterations: Annotated[int, Field(ge=1)] = 4
    tolerance: Annotated[float, Field(ge=0)] = 1e-3
    oversample: Annotated[int, Field(ge=0)] = 4

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        info = sizing.matrix
        if info.capture is None:
            return Unfit(UNCAPTURED)
        if info.capture == "embedding":
            return Unfit("the inputs of an embedding are its tokens, and have no factors; dad sends them")
        if sizing.rank is None:
            return Unfit("rank_dad needs a rank; use policy 'fixed' or 'bound'")
        m, n = info.matrix
        columns = min(sizing.rank, m, n)
        numbers = columns * (m + n) + header_numbers(info.dtype) + (m if info.bias is not None else 0)
        # One iteration from a start that happens to be ill-conditioned need not be exact; two are.
        lossless = sizing.lossless and self.iterations > 1
        rank = min(columns * sizing.world_size, m, n)
        if lossless and sizing.bound is not None:
            rank = min(rank, sizing.bound)
        return Fit((Payload(AllGather, numbers),), rank=rank, lossless=lossless, columns=columns)

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        (m, n), r, rows = sizing.matrix.matrix, fit.columns, sizing.rows or 0
        k = min(r + self.oversample, m, n)
        work = WRITE + Work(passes=5, flops_per_worker=2 * m * n * r, calls=40) - backward_product(m, n, rows)
        if rows <= r:  # they are sent as they are
            return work
        # Exact ones settle with the second iteration.
        iterations = min(self.iterations, 2) if fit.lossless and self.tolerance > 0 else self.iterations
        return work + Work(
            torch_flops=THIN * (4 * rows * iterations + 2 * r) * (m + n) * k,
            orthonormalise=orthonormalising(m * iterations + n, k),
            svd=k**3,
            calls=40 + 10 * iterations,
        )

    def rounds(self, matrix: Matrix) -> Rounds:
        info, dtype = matrix.info, matrix.gradient.dtype
        (m, n), r = info.matrix, matrix.fit.columns
        U, V, bias = self._local(matrix)
        rows = len(matrix.captured.get("inputs", ()))
        local = Beside(matrix)
        parts = [
            local.header(rows),
            local.finite_or_nan(U).to(dtype).reshape(-1),
            V.to(dtype).reshape(-1),
            bias.to(dtype),
        ]
        gathered = yield AllGather(torch.cat(parts))

        world_size, gradient = len(gathered), matrix.gradient
        heads, left, right, biases = gathered.split([len(parts[0]), m * r, n * r, len(bias)], dim=1)
        is_whole = "whole" in matrix.memory
        beside = not is_whole and read_headers(heads)[1]
        # All workers' factors, one below the other: (S·r, m) and (S·r, n).
        U = left.reshape(-1, m).to(U.dtype) / world_size  # before the product, which is larger
        V = right.reshape(-1, n).to(V.dtype)
        # What arrived beside must be sent yet; else the gradient's own memory takes the mean.
        mean = product_of_rows(U, V, None if beside else gradient)
        found = {info.name: mean.to(dtype).view_as(matrix.gradients[info.name])}
        if info.bias is not None:
            found[info.bias] = (biases.to(U.dtype).sum(dim=0) / world_size).to(dtype)
        if beside:
            if bool(matrix.finite):
                matrix.memory["whole"] = torch.tensor(True)
                logger.warning(
                    "%s: inputs and adjoints of its layer do not account for its gradient (it is used outside the "
                    "layer, under autocast, compiled, or has a hook); from now on the factors are those of the "
                    "gradient itself",
                    info.name,
                )
            rest = yield from mean_of(matrix.gradients)
            found = {name: found[name] + rest[name] for name in found}
        return found

    def _local(self, matrix: Matrix) -> tuple[Tensor, Tensor, Tensor]:
        """This worker's U (r × m), V (r × n), and the gradient of the bias (empty where there is none)."""
        info, gradient, r = matrix.info, matrix.gradient, matrix.fit.columns
        dtype, (m, n) = compute_dtype(gradient.dtype), info.matrix
        if "whole" in matrix.memory:
            own = local_gradients(matrix)
            G = as_matrix(own[info.name]).to(dtype)
            bias = own[info.bias].to(dtype) if info.bias is not None else G.new_empty(0)
            forward, backward = lambda V: G @ V, lambda U: G.mT @ U
        else:
            A = matrix.captured.get("inputs", gradient.new_empty(0, n)).to(dtype)
            D = matrix.captured.get("adjoints", gradient.new_empty(0, m)).to(dtype)
            bias = D.sum(dim=0) if info.bias is not None else D.new_empty(0)
            if len(A) <= r:
                missing = (0, 0, 0, r - len(A))
                return F.pad(D, missing), F.pad(A, missing), bias
            forward, backward = lambda V: D.mT @ (A @ V), lambda U: A.mT @ (D @ U)
        start = matrix.normal(n, min(r + self.oversample, m, n), dtype=dtype, device=gradient.device)
        U, V = subspace_iteration(forward, backward, start, r, self.iterations, self.tolerance)
        return U.mT, V.mT, bias

    def local_gradient(self, matrix: Matrix) -> Tensor:
        return as_matrix(local_gradients(matrix)[matrix.info.name])

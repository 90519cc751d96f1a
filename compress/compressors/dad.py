"""dAD, distributed auto-differentiation (Baker et al. 2021): gather inputs and adjoints, multiply after."""

import logging
from typing import Literal

import torch
from torch import Tensor

from compress.compressors.base import AllGather, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work
from compress.compressors.factors import (
    FACTORS,
    Beside,
    header_numbers,
    local_gradients,
    mean_of,
    read_headers,
)
from compress.compressors.work import WRITE, backward_product
from compress.matrix import as_matrix

logger = logging.getLogger(__name__)

UNCAPTURED = (
    "inputs and adjoints are captured only for weights that one nn.Linear, nn.Conv1d to 3d, nn.RNN, nn.GRU, nn.LSTM or "
    "nn.Embedding (without max_norm, scale_grad_by_freq and sparse) has for itself, with torch's own forward"
)
"""Why a method that captures cannot serve a weight."""


class DAD(Compressor):
    """Gather A (rows × n) and Δ (rows × m) from all workers; the mean gradient is ΔᵀA / S, exactly.

    Rows are samples of a linear layer, patches of a convolution, samples of each step of a recurrent layer;
    for an embedding the tokens stand for A. The bias of the layer is exact too, through a column of ones
    beside A, and costs nothing. No worker forms its own ΔᵀA.

    What arrives as a gradient beside A and Δ (a use of the weight outside its layer, autocast, a compiled
    layer) is averaged dense in the same step and added; from then on all workers send that weight dense.
    A step with more rows than expected is sent dense once, and as many are expected from then on.
    """

    captures = True

    kind: Literal["dad"] = "dad"

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        info = sizing.matrix
        if info.capture is None:
            return Unfit(UNCAPTURED)
        if not sizing.rows:
            return Unfit("the rows of a step are unknown; pass bounds=")
        numbers = sizing.rows * FACTORS[info.capture].width(info) + header_numbers(info.dtype)
        return Fit(
            (Payload(AllGather, numbers),),
            rank=min(info.matrix) if sizing.bound is None else sizing.bound,
            lossless=sizing.exact_type,
            columns=sizing.rows,
            reason=f"{sizing.rows} rows of inputs and adjoints from each worker",
        )

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        m, n = sizing.matrix.matrix
        if sizing.matrix.capture == "embedding":
            return Work(passes=5, calls=40)
        # All workers' rows are multiplied in the end, and the backward pass leaves out its own product.
        product = WRITE + Work(passes=5, flops_per_worker=2 * m * n * fit.columns, calls=40)
        return product - backward_product(m, n, fit.columns)

    def rounds(self, matrix: Matrix) -> Rounds:
        info, gradient = matrix.info, matrix.gradient
        if "sent_dense" in matrix.memory or info.capture is None:
            return (yield from mean_of(local_gradients(matrix)))
        factors = FACTORS[info.capture]
        own, width = factors.pack(matrix), factors.width(info)
        capacity = int(matrix.memory.get("capacity", torch.tensor(matrix.fit.columns)))

        # Rows beyond this worker's own stay zero and add nothing.
        rows = gradient.new_zeros(capacity, width)
        if len(own) <= capacity:
            rows[: len(own)] = own
        local = Beside(matrix)
        rows[:, -1] = local.finite_or_nan(rows[:, -1])  # an adjoint, and no bits of a token
        gathered = yield AllGather(torch.cat([local.header(len(own)), rows.view(-1)]))

        world_size, start = len(gathered), header_numbers(gradient.dtype)
        most_rows, beside = read_headers(gathered[:, :start])
        if most_rows > capacity:
            matrix.memory["capacity"] = torch.tensor(most_rows)
        if beside and bool(matrix.finite):
            matrix.memory["sent_dense"] = torch.tensor(True)
            logger.warning(
                "%s: inputs and adjoints of its layer do not account for its gradient (it is used outside the layer, "
                "under autocast, compiled, or has a hook); it is sent dense from now on",
                info.name,
            )
        if most_rows > capacity:
            return (yield from mean_of(local_gradients(matrix)))
        # What arrived beside must be sent yet; else the gradient's own memory, all zeros, takes the mean.
        out = None if beside else gradient
        found = factors.gradients(info, gathered[:, start:].reshape(world_size * capacity, width), world_size, out)
        found = {name: mean.to(gradient.dtype).view_as(matrix.gradients[name]) for name, mean in found.items()}
        if beside:
            rest = yield from mean_of(matrix.gradients)
            found = {name: found[name] + rest[name] for name in found}
        return found

    def local_gradient(self, matrix: Matrix) -> Tensor:
        return as_matrix(local_gradients(matrix)[matrix.info.name])

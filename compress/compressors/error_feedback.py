"""Error feedback: what a step leaves unsent is kept by its worker, and added to its next gradient.

A worker keeps its own remainder, M − its own contribution to what was delivered ("true to the worker").
Keeping M minus the *global* approximation instead lets residuals grow like √t although the mean is right.
"""

import torch
from torch import Tensor

from compress.compressors.base import Matrix
from compress.factor_products import subtract

_COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""Types too coarse to orthogonalise and to keep remainders in, and the type that is used instead."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that a gradient's factors and residual are computed in."""
    return _COMPUTE.get(dtype, dtype)


def working_copy(matrix: Matrix) -> Tensor:
    """The gradient as m × n in its compute type: the gradient itself where it has that type and layout."""
    gradient = matrix.gradient
    return gradient.to(compute_dtype(gradient.dtype))


def gather(matrix: Matrix) -> Tensor:
    """M = gradient + residual, m × n in the compute type, written over the gradient where types allow."""
    M, residual = working_copy(matrix), matrix.memory.get("residual")
    if residual is not None:
        add_scaled(M, residual, matrix.scale)
    return M


def add_scaled(M: Tensor, residual: Tensor, scale: Tensor | None) -> Tensor:
    """M += scale · residual, in place. Residuals are kept unscaled, since a GradScaler's scale changes."""
    return M.add_(residual) if scale is None else M.addcmul_(residual, scale.to(M.dtype))


def keep_rest(matrix: Matrix, M: Tensor, P: Tensor, Q: Tensor) -> None:
    """Keep M − Pᵀ Q as the residual. M is used up.

    Args:
        matrix: whose memory is changed, unless its step is not finite.
        M: from `gather`.
        P: columns × m.
        Q: columns × n, this worker's own.
    """
    if _on_device(matrix):
        return keep(matrix, subtract(M, P, Q, out=M))
    if bool(matrix.finite):  # written where it is kept, which spares two passes
        _unscaled(matrix, subtract(M, P, Q, out=_kept(matrix, M)))
    return None


def keep(matrix: Matrix, rest: Tensor) -> None:
    """Keep `rest`, m × n in the compute type, as the residual."""
    if _on_device(matrix):  # chosen there, so that the host need not wait
        residual = _kept(matrix, rest)
        torch.where(matrix.finite, _unscaled(matrix, rest), residual, out=residual)
    elif bool(matrix.finite):
        _unscaled(matrix, _kept(matrix, rest).copy_(rest))


def _unscaled(matrix: Matrix, rest: Tensor) -> Tensor:
    """Divide by the scale of this step's loss, in place."""
    return rest if matrix.scale is None else rest.div_(matrix.scale.to(rest.dtype))


def _on_device(matrix: Matrix) -> bool:
    """Whether the verdict on the step is on a GPU, where reading it would make the host wait."""
    return matrix.finite.device.type != "cpu"


def _kept(matrix: Matrix, like: Tensor) -> Tensor:
    """The residual in memory, begun with zeros."""
    if "residual" not in matrix.memory:
        matrix.memory["residual"] = torch.zeros_like(like, memory_format=torch.contiguous_format)
    return matrix.memory["residual"]


def remember(matrix: Matrix, key: str, value: Tensor) -> None:
    """Keep a tensor, alike on all workers, under `key` for the next step; of a step that is not finite nothing."""
    finite = matrix.finite & torch.isfinite(value).all()
    if not _on_device(matrix):
        if bool(finite):
            matrix.memory[key] = value.clone()  # not the buffer that all matrices' answers came in
        return
    before = matrix.memory.get(key)
    if before is None or before.shape != value.shape:
        before = torch.zeros_like(value)
    matrix.memory[key] = torch.where(finite, value, before)

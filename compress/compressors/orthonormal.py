"""Orthonormal bases of factors, many of one shape at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

_PASSES = {torch.float32: 3, torch.float64: 5}
"""Of Cholesky-QR. Each shrinks the condition by up to 1e7: two do for what float32 holds above roundoff."""


@dataclass(frozen=True, eq=False)
class Orthonormalise:
    """Ask for an orthonormal basis of the rows of a factor (columns, m), which no other worker need know of.

    It is yielded like a request, so that factors of one shape are taken together.
    """

    factor: Tensor


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows whose span holds the given ones; the same on all workers for the same input.

    On CPUs by Householder's QR, which never fails and is the faster there. On GPUs, where QR goes column by
    column and looking at a result makes the host wait, by Cholesky-QR.

    Args:
        rows: (batch, columns, m), float32 or float64. With more columns than m only m of them can be orthonormal.

    Returns:
        (batch, columns, m); NaN throughout a factor that is not finite.
    """
    basis = _householder(rows) if rows.device.type == "cpu" else cholesky_qr(rows)
    finite = torch.isfinite(rows).all(dim=-1).all(dim=-1)
    return torch.where(finite[:, None, None], basis, torch.nan)


def _householder(rows: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.nan_to_num(rows).mT).Q.mT
    missing = rows.shape[-2] - basis.shape[-2]
    return torch.nn.functional.pad(basis, (0, 0, 0, missing)) if missing else basis


def cholesky_qr(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same span, without a step that depends on the numbers.

    Rows that add nothing to the span beyond roundoff come out orthogonal to the others and no longer than 1;
    zero rows as zeros.

    Source: shifted Cholesky-QR, Fukaya et al. 2020, the Gram matrix in float64.
    """
    X, float64 = rows.to(torch.float64), torch.finfo(torch.float64)
    identity = torch.eye(X.shape[-2], dtype=torch.float64, device=X.device)
    for _ in range(_PASSES[rows.dtype]):
        gram = X @ X.mT
        # The shift keeps factors of deficient rank from failing, the smallest number zeros.
        shift = 4 * float64.eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + float64.tiny
        lower = torch.linalg.cholesky_ex(gram + shift[:, None, None] * identity).L
        X = torch.linalg.solve_triangular(lower, X, upper=False)
    return X.to(rows.dtype)

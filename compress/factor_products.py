"""Products of a matrix with low-rank factors, in the layouts and by the library that run fast.

Factors lie as rows: P is (columns, m) and Q is (columns, n), so that a rank-r matrix is Pᵀ Q. The other way round
(m × r) the product Gᵀ P of a row-major G takes up to 15 times as long on CPUs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""X Wᵀ by oneDNN, which torch's own `mm` takes for other types alone: two to three times as fast in float32 on AMD."""

_WORTH = 2**18
"""Entries of a matrix from which on calling oneDNN pays."""

_BLOCK = 2**18
"""Entries of a product that are made before they are written where they belong: they stay in the cache meanwhile."""

_FAST_ROWS = 12
"""Below so many rows of factors, `addmm_` takes twice as long on CPUs as with zeros added."""


def times_rows(M: Tensor, Q: Tensor) -> Tensor:
    """M Qᵀ, lying as rows: (columns, m) for M of m × n and Q of columns × n."""
    return _product(Q, M)


def times_columns(P: Tensor, M: Tensor) -> Tensor:
    """P M: (columns, n) for M of m × n and P of columns × m."""
    return _product(P, M.mT)


def expand(P: Tensor, Q: Tensor, out: Tensor) -> Tensor:
    """Write Pᵀ Q over `out`, m × n, for P of columns × m and Q of columns × n."""
    if out.device.type != "cpu":
        return torch.mm(P.mT, Q, out=out)
    if _by_onednn(out):
        for rows, product in _blocks(P, Q, out):
            rows.copy_(product)
        return out
    # Adding to zeros is faster than writing: the library then reads what it writes to in time.
    return _add(out.zero_(), P, Q, 1.0)


def subtract(M: Tensor, P: Tensor, Q: Tensor, out: Tensor) -> Tensor:
    """Write M − Pᵀ Q over `out`, which may be M itself; shapes as in `expand`."""
    if _by_onednn(out):
        for (rows, product), source in zip(_blocks(P, Q, out), M.split(_block_rows(out)), strict=True):
            torch.sub(source, product, out=rows)
        return out
    return _add(out if out is M else out.copy_(M), P, Q, -1.0)


def _by_onednn(large: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and large.device.type == "cpu"
        and large.dtype == torch.float32
        and large.numel() >= _WORTH
        and bool(torch.backends.mkldnn.enabled)
    )


def _product(X: Tensor, W: Tensor) -> Tensor:
    """X Wᵀ, with W the larger."""
    return _onednn(X, W) if _by_onednn(W) else X @ W.mT


def _onednn(X: Tensor, W: Tensor) -> Tensor:
    """X Wᵀ by oneDNN; only where `_by_onednn` says so."""
    found: Tensor = _ONEDNN(X, W, None, "none", [], "")  # type: ignore[misc]
    return found


def _blocks(P: Tensor, Q: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `out`, and what Pᵀ Q has there, one block at a time."""
    left, right, count = P.mT.contiguous(), Q.mT.contiguous(), _block_rows(out)
    for rows, part in zip(out.split(count), left.split(count), strict=True):
        yield rows, _onednn(part, right)


def _block_rows(out: Tensor) -> int:
    return max(1, _BLOCK // out.shape[1])


def _add(out: Tensor, P: Tensor, Q: Tensor, factor: float) -> Tensor:
    if out.device.type == "cpu" and len(P) < _FAST_ROWS:
        P, Q = (torch.nn.functional.pad(rows, (0, 0, 0, _FAST_ROWS - len(rows))) for rows in (P, Q))
    return out.addmm_(P.mT, Q, alpha=factor)

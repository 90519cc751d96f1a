"""Singular values of matrices: all of them, or the largest with a limit on what they leave out."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.compressors.orthonormal import orthonormal
from compress.factor_products import subtract, times_columns, times_rows

_SAFE_EXPONENT = 30
"""Entries up to 2^±30 need no scaling: squares of them and of their roundoff stay in float32's range."""

_OWN_TYPE_FROM = 64
"""Rows or columns from which on a decomposition in float32 errs by less than a tenth of max(m, n)·ε·σ_1."""

_SEED = 0x5EED

_BLOCK = 2**20
"""Entries of a residual that are made at a time on CPUs: they stay in the cache until their norm is taken."""


def rescaled(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Scale by powers of two, which rounds nothing, so that squares neither overflow nor underflow.

    Args:
        batch: (batch, m, n), float32 or float64.

    Returns:
        The scaled matrices, and their factors (batch,), float64 on the CPU.

    Raises:
        ValueError: an entry that is NaN or infinite.
    """
    if batch.numel() == 0:
        return batch, torch.ones(len(batch), dtype=torch.float64)
    # Two reductions read the matrix faster than torch's infinity norm or `aminmax`; both pass NaN on.
    largest = torch.maximum(batch.amax((-2, -1)), -batch.amin((-2, -1))).tolist()
    if not all(map(math.isfinite, largest)):
        shape = tuple(batch.shape[1:])
        raise ValueError(f"a rank is measured of finite entries only, got NaN or infinity in a matrix of shape {shape}")
    # Beyond the limit the factor itself would leave the range of the type.
    limit = 126 if batch.dtype == torch.float32 else 1022
    exponents = [math.frexp(entry)[1] for entry in largest]
    factors = [math.ldexp(1.0, -max(-limit, min(e, limit))) if abs(e) > _SAFE_EXPONENT else 1.0 for e in exponents]
    scales = torch.tensor(factors, dtype=torch.float64)
    if any(factor != 1.0 for factor in factors):
        batch = batch * scales.to(batch)[:, None, None]
    return batch, scales


def all_singular_values(batch: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values, twice: so exactly that roundoff is no rank, and as the matrices' own type gives them.

    Args:
        batch: (batch, m, n), float32 or float64.

    Returns:
        Both (batch, min(m, n)), descending, float64 on the CPU.
    """
    tall = batch if batch.shape[1] >= batch.shape[2] else batch.mT  # LAPACK takes 1.4 to 3 times as long for wide ones
    own = torch.linalg.svdvals(tall).to("cpu", torch.float64)
    if batch.dtype == torch.float64 or max(batch.shape[1:]) >= _OWN_TYPE_FROM:
        return own, own
    return torch.linalg.svdvals(tall.to(torch.float64)).cpu(), own


@dataclass(frozen=True, eq=False)
class Sketch:
    """A matrix G seen through Q Qᵀ, Q an orthonormal basis of G Ωᵀ for a random Ω of a few rows.

    For whatever Q and B, G differs from Q B by a residual E, so that |σ_i(G) − σ_i(Q B)| ≤ ‖E‖ (Weyl), and
    σ_i(Q B) = σ_i(B), the rest being 0: how good the sketch was is proven by E alone. That holds too where
    GPUs' Cholesky-QR leaves columns of Q, such as add nothing, too short: σ_i(Q B) ≤ σ_i(B) ≤ σ_i(G) then.

    Source: Halko, Martinsson & Tropp 2011, algorithm 4.1, with the residual itself in place of an estimate.

    Attributes:
        G: m × n, float32 or float64, the type that all of this is computed in.
        P: Qᵀ, (columns, m).
        B: Qᵀ G, (columns, n).
        singular_values: of B, (columns,), descending, float64 on the CPU.
    """

    G: Tensor
    P: Tensor
    B: Tensor
    singular_values: Tensor

    def residual(self) -> float:
        """A limit on ‖G − Q B‖_F, which no singular value of G is farther from one of the sketch, or from 0.

        The difference itself is formed, since ‖G‖² − ‖B‖² would leave √ε·‖G‖ uncertain. What rounding may
        have hidden is added: errors of k summands grow like √k (Higham & Mary 2019).
        """
        rows = max(1, _BLOCK // self.G.shape[1]) if self.G.device.type == "cpu" else len(self.G)
        out = torch.empty_like(self.G[:rows], memory_format=torch.contiguous_format)
        norms = [
            torch.linalg.vector_norm(subtract(block, P, self.B, out=out[: len(block)]))
            for block, P in zip(self.G.split(rows), self.P.split(rows, dim=1), strict=True)
        ]
        roundoff = math.sqrt(len(self.B)) * torch.finfo(self.G.dtype).eps * float(self.singular_values.norm())
        return float(torch.stack(norms).to(torch.float64).norm()) + roundoff


def sketch(G: Tensor, columns: int) -> Sketch:
    """Sketch a matrix of m × n, float32 or float64, on its device; the same each time."""
    with torch.autocast(G.device.type, enabled=False):
        P = orthonormal(times_rows(G, _random(columns, G))[None])[0]
        B = times_columns(P, G)
    return Sketch(G, P, B, torch.linalg.svdvals(B.mT).to("cpu", torch.float64))


def _random(columns: int, G: Tensor) -> Tensor:
    """Ω, (columns, n), of a generator of its own: alike on all devices, and nobody else's numbers change."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(columns, G.shape[1], generator=generator, dtype=torch.float32, device="cpu").to(G)

"""Subspace iteration: the leading part of a matrix that only its products with thin matrices tell of."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def subspace_iteration(
    forward: Map, backward: Map, start: Tensor, rank: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Find U (m × r) and V (n × r) such that U Vᵀ is near to the best approximation of an m × n matrix G by rank r.

    1. U = orthonormal basis of G V, m × k: all directions at once, so that equal singular values do no harm.
    2. V = Gᵀ U, n × k: the best there is for this U. Its norm grows with each iteration.
    3. Stop where the norm grew by less than `tolerance` of itself.
    4. Of the k columns turn the r leading ones to the front (Rayleigh–Ritz), and drop the rest.

    From the second iteration on, U Vᵀ equals G where r ≥ rank(G).

    Args:
        forward: V (n × k) to G V.
        backward: U (m × k) to Gᵀ U.
        start: V to begin with, n × k, generic; the more columns beyond r, the sooner it is near.
        rank: r, no more than k.
        iterations: at most so many; 1 or more.
        tolerance: 0 does all iterations, and spares a GPU the wait for a number at each.
    """
    V, norm = start, None
    for _ in range(iterations):
        U, _ = torch.linalg.qr(forward(V))
        V = backward(U)
        if tolerance > 0:
            norm, before = float(V.norm()), norm
            if before is not None and norm - before <= tolerance * norm:
                break
    if rank == V.shape[1]:
        return U, V
    # The singular vectors come from the triangle of V, not from VᵀV, which would halve the digits. What is not finite
    # stays so in U and V, while the decomposition would refuse it.
    _, triangle = torch.linalg.qr(V, mode="r")
    turn, _, _ = torch.linalg.svd(torch.nan_to_num(triangle.mT, posinf=0.0, neginf=0.0))
    return U @ turn[:, :rank], V @ turn[:, :rank]

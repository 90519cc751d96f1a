"""Low-rank matrices, slopes, and how far matrices are from low rank."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

SLACK = 1 + 1e-12
ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def repeatable():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def of_rank(rank: int, m: int, n: int) -> Tensor:
    return randn(m, rank) @ randn(rank, n)


def phi(z: Tensor, alpha: float) -> Tensor:
    return F.leaky_relu(z, alpha)


def beyond(matrix: Tensor, rank: int) -> Tensor:
    """Distance to the nearest matrix of that rank (Eckart-Young)."""
    return torch.linalg.svdvals(matrix)[rank:].norm()


def spectral(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)


def highest(objective, variables: list[Tensor], steps: int = 150) -> float:
    """Largest value that gradient ascent meets."""
    for variable in variables:
        variable.requires_grad_()
    optimizer = torch.optim.Adam(variables, lr=0.05)
    best = -math.inf
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective()
        best = max(best, value.item())
        (-value).backward()
        optimizer.step()
    return best

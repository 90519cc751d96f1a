"""The obviously correct twin of the bounds: gradients in float64, and their ranks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, passes: Sequence[Callable[[nn.Module], Tensor]]) -> dict[str, Tensor]:
    """The mean gradient over backward passes (workers × accumulation steps), as matrix views."""
    model.zero_grad()
    for run in passes:
        (run(model) / len(passes)).backward()
    return {
        name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten(1)
        for name, parameter in model.named_parameters()
        if parameter.dim() >= 2
    }


def rank(matrix: Tensor) -> int:
    """Singular values above roundoff, of a float64 matrix of moderate condition."""
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-10 * values[0]).sum()) if len(values) and values[0] > 1e-13 else 0

"""nn.Linear: every row of the input is a row of A."""

import torch.nn.functional as F
from torch import Tensor, nn

from compress.capture.function import captured
from compress.capture.kind import Keepers, Kind, weight_and_bias
from compress.capture.product import Gradients, Product


class Linear(Product):
    """Of inputs (…, n) with a weight (m, n)."""

    def forward(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(source, weight, bias)

    def backward(self, adjoint: Tensor, source: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        A, D = _flat(source), _flat(adjoint)
        return (
            adjoint @ weight if needed[0] else None,
            D.mT @ A if needed[1] else None,
            D.sum(dim=0) if needed[2] else None,
        )

    def rows(self, source: Tensor, adjoint: Tensor) -> dict[str, Tensor]:
        return {"inputs": _flat(source), "adjoints": _flat(adjoint)}


def _flat(tensor: Tensor) -> Tensor:
    return tensor.flatten(end_dim=-2) if tensor.dim() > 1 else tensor.unsqueeze(0)


def _forward(module: nn.Linear, keepers: Keepers, input: Tensor) -> Tensor:
    return captured(Linear(), input, keepers["weight"], module.bias)


LINEAR = Kind("linear", weight_and_bias, _forward)

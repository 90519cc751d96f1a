"""nn.Embedding: A is one-hot, so its tokens stand for it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.capture.function import captured
from compress.capture.kind import Keepers, Kind
from compress.capture.product import Gradients, Product


@dataclass(frozen=True)
class Embedding(Product):
    """The rows of a weight (vocabulary, n) that tokens name; those of `padding` get no gradient (−1: none)."""

    padding: int

    def forward(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(source, weight)

    def backward(self, adjoint: Tensor, source: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        if not needed[1]:
            return None, None, None
        found = torch.ops.aten.embedding_dense_backward(adjoint, source, weight.shape[0], self.padding, False)
        return None, found, None

    def rows(self, source: Tensor, adjoint: Tensor) -> dict[str, Tensor]:
        tokens, D = source.reshape(-1), adjoint.reshape(-1, adjoint.shape[-1])
        if self.padding >= 0:
            D = D.masked_fill((tokens == self.padding).unsqueeze(1), 0.0)
        return {"tokens": tokens, "adjoints": D}


def _weights(module: nn.Embedding) -> dict[str, str | None]:
    plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return {"weight": None} if plain else {}


def _forward(module: nn.Embedding, keepers: Keepers, input: Tensor) -> Tensor:
    padding = -1 if module.padding_idx is None else module.padding_idx
    return captured(Embedding(padding), input, keepers["weight"], None)


EMBEDDING = Kind("embedding", _weights, _forward)

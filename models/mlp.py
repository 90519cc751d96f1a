"""Multi-layer perceptrons: with a bottleneck anywhere, and as tied autoencoders."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.config import Count, ModelConfig, Slope
from models.data.signature import Kind, Signature


class MLP(ModelConfig):
    """Linear layers with Leaky-ReLUs between them.

    Attributes:
        depth: linear layers, 2 or more.
        width: of the hidden layers.
        bottleneck: width of the middle hidden layer; None for no bottleneck.
        widths: of all hidden layers, instead of depth, width and bottleneck.
        alpha: slope of the Leaky-ReLUs for negative inputs; 0 is ReLU, 1 makes the network linear.
        bias: whether the linear layers have biases.
        tied: whether the second half of the layers uses the transposed weights of the first, as tied
            autoencoders do; widths must read the same backwards, and outputs be as many as inputs.
    """

    kind: Literal["mlp"] = "mlp"
    depth: Annotated[int, Field(ge=2)] = 4
    width: Count = 128
    bottleneck: Count | None = None
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    alpha: Slope = 1.0
    bias: bool = True
    tied: bool = False

    takes: ClassVar[tuple[Kind, ...]] = ("features",)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        beside = {"depth", "width", "bottleneck"} & self.model_fields_set
        if self.widths is not None and beside:
            raise ValueError(f"widths is given beside {', '.join(sorted(beside))}; give either")
        if self.tied and (self.hidden != self.hidden[::-1] or len(self.hidden) % 2 == 0):
            raise ValueError(
                f"tied takes an odd number of hidden widths that read the same backwards, found {list(self.hidden)}"
            )
        return self

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        if self.widths is not None:
            return self.widths
        hidden = [self.width] * (self.depth - 1)
        if self.bottleneck is not None:
            hidden[len(hidden) // 2] = self.bottleneck
        return tuple(hidden)

    def build(self, signature: Signature) -> nn.Module:
        sizes = (signature.features, *self.hidden, signature.outputs)
        if self.tied:
            if signature.outputs != signature.features:
                raise ValueError(
                    f"model.tied takes data to be reconstructed; found {signature.features} inputs and "
                    f"{signature.outputs} outputs"
                )
            return TiedAutoencoder(sizes[: len(sizes) // 2 + 1], self.alpha, self.bias)
        layers: list[nn.Module] = []
        for wide_in, wide_out in pairwise(sizes):
            layers += [nn.Linear(wide_in, wide_out, bias=self.bias), nn.LeakyReLU(self.alpha)]
        return nn.Sequential(*layers[:-1])

    @property
    def knobs(self) -> dict[str, float]:
        return {"bottleneck": min(self.hidden), "sequence_length": 1, "alpha": self.alpha}


class TiedAutoencoder(nn.Module):
    """An encoder, and a decoder that uses the encoder's weights, transposed.

    Args:
        sizes: from the input's features to the narrowest layer's.
        alpha: slope of the Leaky-ReLUs behind all layers but the last.
        bias: whether layers have biases; the decoder has its own.
    """

    def __init__(self, sizes: tuple[int, ...], alpha: float, bias: bool) -> None:
        super().__init__()
        self.alpha = alpha
        layers = [nn.Linear(m, n, bias=bias) for m, n in pairwise(sizes)]
        self.encoder: Sequence[nn.Linear] = nn.ModuleList(layers)  # type: ignore[assignment]
        # Made as layers for their biases' initial values, which are drawn by the width in front of them.
        behind = [nn.Linear(m, n) for m, n in pairwise(sizes[::-1])]
        self.biases = nn.ParameterList(layer.bias for layer in behind) if bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.encoder:
            hidden = F.leaky_relu(layer(hidden), self.alpha)
        last = len(self.encoder) - 1
        for number, layer in enumerate(reversed(self.encoder)):
            bias = None if self.biases is None else self.biases[number]
            hidden = F.linear(hidden, layer.weight.mT, bias)
            if number < last:
                hidden = F.leaky_relu(hidden, self.alpha)
        return hidden

"""A multi-layer perceptron with a bottleneck in the middle."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from models.config import ModelConfig

Size = Annotated[int, Field(ge=1)]


class MLP(ModelConfig):
    """`depth` linear layers with Leaky-ReLUs between them; the middle hidden layer is the bottleneck.

    Attributes:
        depth: linear layers, 2 or more.
        width: of the hidden layers.
        bottleneck: width of the middle hidden layer; None for no bottleneck.
        alpha: slope of the Leaky-ReLUs for negative inputs; 0 is ReLU, 1 makes the network linear.
        bias: whether the linear layers have biases.
    """

    kind: Literal["mlp"] = "mlp"
    depth: Annotated[int, Field(ge=2)] = 4
    width: Size = 128
    bottleneck: Size | None = None
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    bias: bool = True

    def build(self, inputs: int, outputs: int) -> nn.Sequential:
        hidden = [self.width] * (self.depth - 1)
        if self.bottleneck is not None:
            hidden[len(hidden) // 2] = self.bottleneck
        layers: list[nn.Module] = []
        for wide_in, wide_out in pairwise([inputs, *hidden, outputs]):
            layers += [nn.Linear(wide_in, wide_out, bias=self.bias), nn.LeakyReLU(self.alpha)]
        return nn.Sequential(*layers[:-1])

    @property
    def knobs(self) -> dict[str, float]:
        return {"bottleneck": self.bottleneck or self.width, "sequence_length": 1, "alpha": self.alpha}

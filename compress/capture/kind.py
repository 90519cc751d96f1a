"""What it takes to capture a kind of layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from compress.capture.keeper import Keeper

Keepers = Mapping[str, Keeper]
"""By the name that the layer gives the weight; weights that nobody wants captured are left out."""


@dataclass(frozen=True)
class Kind:
    """How layers of one class are captured.

    Attributes:
        name: of the kind.
        weights: for a layer, the names of the weights that can be captured, each with the name of the bias
            whose gradient is the sum of its adjoints (None where there is none); empty where the layer's
            settings allow nothing.
        forward: the layer's forward, called with the layer and its keepers before all arguments.
    """

    name: str
    weights: Callable[[Any], dict[str, str | None]]
    forward: Callable[..., Any]


def weight_and_bias(module: nn.Module) -> dict[str, str | None]:
    """Of a layer with one weight and perhaps a bias."""
    return {"weight": "bias" if module._parameters.get("bias") is not None else None}

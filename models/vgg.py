"""VGG-11 (Simonyan and Zisserman 2015), with one linear classifier as is usual for small images."""

from typing import Literal

import torch
from torch import nn

from models.convolutional import ConvolutionalConfig
from models.data.signature import Signature

CHANNELS = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")
"""Of the eight convolutions, as multiples of `width`."""


class VGG11(ConvolutionalConfig):
    """Eight convolutions in five blocks.

    Attributes:
        pool: between blocks: the largest, or the average, of 2 × 2 positions. A pool on one position is none.
    """

    kind: Literal["vgg11"] = "vgg11"
    pool: Literal["max", "average"] = "max"

    def build(self, signature: Signature) -> nn.Module:
        channels, height, width = signature.shape
        layers: list[nn.Module] = []
        stride = self.stride
        for item in CHANNELS:
            if isinstance(item, str):
                # Rounded up, so that small images are pooled down to one position and no further.
                pool = nn.MaxPool2d if self.pool == "max" else nn.AvgPool2d
                layers.append(pool(2, ceil_mode=True))
                height, width = -(-height // 2), -(-width // 2)
                continue
            convolution = self.convolution(channels, item * self.width, stride)
            if not self.norm:
                # Drawn for all taps; signals would fade where most taps meet padding, as on few positions they do.
                with torch.no_grad():
                    convolution.weight.div_((_meeting(height, stride) * _meeting(width, stride)) ** 0.5)
            layers += [*self.normalised(convolution), self.activation()]
            height, width = -(-height // stride), -(-width // stride)
            channels, stride = item * self.width, 1
        return nn.Sequential(*layers, *self.head(channels, signature.outputs))


def _meeting(length: int, stride: int) -> float:
    """The share of three taps that meet the image, not its padding, along an axis of so many positions."""
    meeting = [0 <= at + tap < length for at in range(0, length, stride) for tap in (-1, 0, 1)]
    return sum(meeting) / len(meeting)

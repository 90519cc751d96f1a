"""Residual networks of basic blocks (He et al. 2016): ResNet-18, and ResNet-16, which has one block less."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from models.convolutional import ConvolutionalConfig
from models.data.signature import Signature


class ResNet(ConvolutionalConfig):
    """A stem, four stages of basic blocks, a classifier.

    Attributes:
        stem: `small`, one 3 × 3 convolution as is usual for small images; or `imagenet`, 7 × 7 with twice the
            stride, then a pool.
    """

    stem: Literal["small", "imagenet"] = "small"

    blocks: ClassVar[tuple[int, ...]]

    def build(self, signature: Signature) -> nn.Module:
        layers = self._stem(signature.shape[0])
        channels = self.width
        for stage, count in enumerate(self.blocks):
            for number in range(count):
                wide = self.width * 2**stage
                layers.append(BasicBlock(self, channels, wide, stride=2 if stage and not number else 1))
                channels = wide
        return nn.Sequential(*layers, *self.head(channels, signature.outputs))

    def _stem(self, channels: int) -> list[nn.Module]:
        if self.stem == "small":
            return [*self.normalised(self.convolution(channels, self.width, self.stride)), self.activation()]
        first = self.convolution(channels, self.width, 2 * self.stride, kernel=7)
        return [*self.normalised(first), self.activation(), nn.MaxPool2d(3, 2, padding=1)]


class ResNet16(ResNet):
    """ResNet-18 less the last basic block: fifteen convolutions and a classifier."""

    kind: Literal["resnet16"] = "resnet16"
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 1)


class ResNet18(ResNet):
    """Seventeen convolutions and a classifier."""

    kind: Literal["resnet18"] = "resnet18"
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a 1 × 1 convolution where shapes differ."""

    def __init__(self, config: ResNet, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        second = config.convolution(outputs, outputs)
        if not config.norm:
            # Else signals would double with each block; so all blocks together not even treble them.
            with torch.no_grad():
                second.weight.mul_(sum(config.blocks) ** -0.5)
        self.residual = nn.Sequential(
            *config.normalised(config.convolution(inputs, outputs, stride)),
            config.activation(),
            *config.normalised(second),
        )
        alike = stride == 1 and inputs == outputs
        shortcut = [] if alike else config.normalised(config.convolution(inputs, outputs, stride, kernel=1))
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = config.activation()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.activation(self.residual(images) + self.shortcut(images))
        return result

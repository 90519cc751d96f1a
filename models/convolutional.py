"""What networks for images share: their knobs, and a head behind the last feature map."""

from typing import ClassVar

from torch import nn

from models.config import Count, ModelConfig, Slope
from models.data.signature import Kind


class ConvolutionalConfig(ModelConfig):
    """A convolutional network for images of any size.

    Attributes:
        width: channels of the first layers; later ones have multiples of it.
        stride: of the first convolution.
        norm: whether convolutions are followed by BatchNorm.
        alpha: slope of the Leaky-ReLUs for negative inputs; 0 is ReLU, 1 makes them linear.
        bottleneck: width of a linear layer before the classifier; None for no such layer.
    """

    width: Count = 64
    stride: Count = 1
    norm: bool = True
    alpha: Slope = 0.0
    bottleneck: Count | None = None

    takes: ClassVar[tuple[Kind, ...]] = ("images",)

    @property
    def knobs(self) -> dict[str, float]:
        return {"bottleneck": self.bottleneck or self.width, "sequence_length": 1, "alpha": self.alpha}

    def activation(self) -> nn.Module:
        """Leaky-ReLU, or nothing where it would be linear."""
        return nn.Identity() if self.alpha == 1 else nn.LeakyReLU(self.alpha)

    def normalised(self, convolution: nn.Conv2d) -> list[nn.Module]:
        """A convolution with its norm, if there is one."""
        return [convolution, nn.BatchNorm2d(convolution.out_channels)] if self.norm else [convolution]

    def head(self, channels: int, outputs: int) -> nn.Sequential:
        """Average over positions, bottleneck, classifier."""
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if self.bottleneck is not None:
            layers.append(nn.Linear(channels, self.bottleneck))
            channels = self.bottleneck
        return nn.Sequential(*layers, nn.Linear(channels, outputs))

    def convolution(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
        """A convolution that keeps the image's size but for its stride; biased where no norm takes the bias's place."""
        layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=not self.norm)
        # By the slope, so that signals keep their size through many layers without norms.
        nn.init.kaiming_normal_(layer.weight, a=self.alpha)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer

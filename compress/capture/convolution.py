"""nn.Conv1d, nn.Conv2d, nn.Conv3d: every patch of the input is a row of A."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.capture.function import captured
from compress.capture.kind import Keepers, Kind, weight_and_bias
from compress.capture.product import Gradients, Product

Convolutional = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class Convolution(Product):
    """Of inputs (samples, channels, *sizes) with a weight (m, channels / groups, *kernel)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        unused = (0,) * len(self.kernel)
        return torch.convolution(
            source, weight, bias, self.stride, self.padding, self.dilation, False, unused, self.groups
        )

    def backward(self, adjoint: Tensor, source: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        if not any(needed):
            return None, None, None
        unused = (0,) * len(self.kernel)
        sizes = [weight.shape[0]]
        found: Gradients = torch.ops.aten.convolution_backward(
            adjoint, source, weight, sizes, self.stride, self.padding, self.dilation, False, unused, self.groups, needed
        )
        return found

    def rows(self, source: Tensor, adjoint: Tensor) -> dict[str, Tensor]:
        """Patches, made only here; each group of channels has rows of its own, zero in Δ for the other groups."""
        axes, groups = len(self.kernel), self.groups
        windows = F.pad(source, [width for width in reversed(self.padding) for _ in range(2)])
        for axis, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), 2):
            windows = windows.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        # (samples, channels, *positions, *kernel) to (samples · positions · groups, channels / groups · kernel)
        positions = range(2, 2 + axes)
        windows = windows.unflatten(1, (groups, -1)).permute(
            0, *(axis + 1 for axis in positions), 1, 2, *(axis + 1 + axes for axis in positions)
        )
        A = windows.flatten(start_dim=axes + 2).flatten(end_dim=axes + 1)
        # (samples, m, *positions) to (samples · positions, groups, m / groups)
        D = adjoint.movedim(1, -1).flatten(end_dim=-2).unflatten(1, (groups, -1))
        if groups > 1:
            # Group g's m / groups columns stand in the g-th place of the m.
            D = torch.diag_embed(D.mT, dim1=1, dim2=2)
        return {"inputs": A, "adjoints": D.reshape(len(A), adjoint.shape[1])}


def _weights(module: Convolutional) -> dict[str, str | None]:
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, kind) and type(module)._conv_forward is kind._conv_forward:
            return weight_and_bias(module)
    return {}


def product_of(module: Convolutional, input: Tensor) -> tuple[Tensor, Convolution]:
    """The layer's product, and its input as the product takes it: padded, with an axis of samples."""
    padding = module.padding
    if module.padding_mode != "zeros":
        input = F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    elif isinstance(padding, str):  # "same" may want more on one side than on the other
        input = F.pad(input, module._reversed_padding_repeated_twice)
    if module.padding_mode != "zeros" or isinstance(padding, str):
        padding = (0,) * len(module.kernel_size)
    product = Convolution(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return input.unsqueeze(0) if _is_single(module, input) else input, product


def _is_single(module: Convolutional, input: Tensor) -> bool:
    return input.dim() == len(module.kernel_size) + 1


def _forward(module: Convolutional, keepers: Keepers, input: Tensor) -> Tensor:
    source, product = product_of(module, input)
    output = captured(product, source, keepers["weight"], module.bias)
    return output.squeeze(0) if _is_single(module, input) else output


CONVOLUTION = Kind("convolution", _weights, _forward)

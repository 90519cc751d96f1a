"""The matrix view: how a parameter is seen as an m × n matrix, and how it is named."""

import math
from collections.abc import Container, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (m, n): the first axis, and the product of all the others.

    A convolution kernel (C_out, C_in, k, k) is C_out × (C_in·k·k).

    Raises:
        ValueError: the shape has fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"a matrix view needs two or more axes, got shape {tuple(shape)}")
    return int(shape[0]), math.prod(int(size) for size in shape[1:])


def as_matrix(tensor: Tensor) -> Tensor:
    """See a tensor of two or more axes as its m × n matrix, without a copy where its layout allows."""
    return tensor.reshape(matrix_shape(tensor.shape))


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or the network itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def canonical_name(name: str) -> str:
    """Drop the prefix that torch.compile puts before names of what it wraps."""
    return name.replace("_orig_mod.", "")


def look_up(names: Container[str], name: str) -> str:
    """The name among `names` that is meant, with or without the prefixes of DDP and torch.compile."""
    for candidate in (name, canonical_name(name), canonical_name(name).removeprefix("module.")):
        if candidate in names:
            return candidate
    return name


def named_matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) for every parameter of two or more axes, as `named_parameters()` orders them."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            yield canonical_name(name), parameter

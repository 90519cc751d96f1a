"""What a compressor must know of each parameter: its shape, type, and the layer that owns it."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from compress.capture import kind_of
from compress.matrix import canonical_name, matrix_shape, unwrapped


@dataclass(frozen=True)
class ParameterInfo:
    """One trainable parameter.

    Attributes:
        name: without the prefixes of DDP and torch.compile.
        shape: as the parameter has it.
        dtype: of the parameter and so of its gradient.
        capture: the kind of the layer (linear, convolution, recurrent, embedding) whose weight it is and
            nobody else's, and whose A and Δ can be captured; else None.
        bias: the name of the trainable bias whose gradient Δ gives too, else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    capture: str | None = None
    bias: str | None = None

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2

    @property
    def matrix(self) -> tuple[int, int]:
        """(m, n) of the matrix view; a vector counts as 1 × n."""
        return matrix_shape(self.shape if self.is_matrix else (1, *self.shape, 1))

    @property
    def bytes(self) -> int:
        """Of the gradient."""
        return math.prod(self.shape) * self.dtype.itemsize


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters whose gradients are averaged, by canonical name, in the order of `named_parameters()`.

    Left out are frozen ones, and those that DistributedDataParallel was told to ignore.

    Raises:
        ValueError: two names are the same but for a prefix of torch.compile.
    """
    network = unwrapped(model)
    ignored: set[str] = getattr(model, "parameters_to_ignore", set()) if network is not model else set()
    found: dict[str, nn.Parameter] = {}
    for raw_name, parameter in network.named_parameters():
        name = canonical_name(raw_name)
        if name in found:
            raise ValueError(f"two parameters are called {name!r} without torch.compile's prefix; rename one")
        # DDP spells the names of parameters that the network itself holds with a dot before them.
        spelled = raw_name if "." in raw_name else f".{raw_name}"
        if parameter.requires_grad and spelled not in ignored:
            found[name] = parameter
    return found


def untrusted_parameters(model: nn.Module) -> set[str]:
    """Names of parameters that DistributedDataParallel was told to ignore: workers may hold different ones."""
    ignored: set[str] = getattr(model, "parameters_to_ignore", set())
    return {canonical_name(name.removeprefix(".")) for name in ignored}


def describe(model: nn.Module) -> list[ParameterInfo]:
    """Describe every parameter whose gradient is averaged."""
    parameters = named_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    network = unwrapped(model)
    owners = Counter(id(parameter) for module in network.modules() for parameter in module.parameters(recurse=False))
    fields: dict[str, dict[str, str | None]] = {name: {} for name in parameters}
    for module in network.modules():
        kind = kind_of(module)
        if kind is None:
            continue
        for weight_name, bias_name in kind.weights(module).items():
            weight, bias = module._parameters.get(weight_name), module._parameters.get(bias_name or "")
            if weight is None or id(weight) not in names or owners[id(weight)] > 1 or owners[id(bias)] > 1:
                continue
            fields[names[id(weight)]] = {"capture": kind.name, "bias": names.get(id(bias))}
    return [
        ParameterInfo(name, tuple(parameter.shape), parameter.dtype, **fields[name])
        for name, parameter in parameters.items()
    ]

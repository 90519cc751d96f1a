"""What a compressor must know of each parameter: its shape, type, and the layer that owns it."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from compress.matrix import canonical_name, matrix_shape


@dataclass(frozen=True)
class ParameterInfo:
    """One trainable parameter.

    Attributes:
        name: without `module.` and `_orig_mod.` prefixes.
        shape: as the parameter has it.
        dtype: of the parameter and so of its gradient.
        linear: the `nn.Linear` module that alone holds it as its weight or its bias, else None.
        bias: for the weight of such a module the name of its trainable bias, else None.
        weight: for the bias of such a module the name of its weight, else None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    linear: str | None = None
    bias: str | None = None
    weight: str | None = None

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2

    @property
    def matrix(self) -> tuple[int, int]:
        """(m, n) of the matrix view; a vector counts as 1 × n."""
        return matrix_shape(self.shape if self.is_matrix else (1, *self.shape, 1))


def describe(model: nn.Module) -> list[ParameterInfo]:
    """Describe every trainable parameter, in the order of `named_parameters()`."""
    names = {id(parameter): canonical_name(name) for name, parameter in model.named_parameters()}
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    weights: dict[int, tuple[str, str | None]] = {}
    biases: dict[int, tuple[str, str]] = {}
    for module_name, module in model.named_modules():
        if type(module).forward is not nn.Linear.forward or not isinstance(module, nn.Linear):
            continue
        weight, bias = module.weight, module.bias
        alone = all(owners[id(parameter)] == 1 for parameter in (weight, bias) if parameter is not None)
        if not alone or not weight.requires_grad:
            continue
        layer = canonical_name(module_name + ".").removesuffix(".")
        trainable_bias = bias is not None and bias.requires_grad
        weights[id(weight)] = (layer, names[id(bias)] if trainable_bias else None)
        if trainable_bias:
            biases[id(bias)] = (layer, names[id(weight)])

    infos = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        key = id(parameter)
        name, shape = names[key], tuple(parameter.shape)
        if key in weights:
            layer, bias_name = weights[key]
            infos.append(ParameterInfo(name, shape, parameter.dtype, linear=layer, bias=bias_name))
        elif key in biases:
            layer, weight_name = biases[key]
            infos.append(ParameterInfo(name, shape, parameter.dtype, linear=layer, weight=weight_name))
        else:
            infos.append(ParameterInfo(name, shape, parameter.dtype))
    return infos

"""Where arithmetic is coarser than a gradient's type, nothing is certified."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from compress.matrix import canonical_name, unwrapped

_COARSE = ("tf32", "bf16")


class PrecisionWatch:
    """Notices autocast, TF32 and the like where certified weights are used.

    Attributes:
        lowered: by name of the weight: what lowered the precision of its gradient. Once seen, it stays: a
            residual that error feedback has begun must be carried on.
    """

    def __init__(
        self, model: nn.Module, names: Collection[str], lowered: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Watch the modules that own the parameters of these names; what was `lowered` before stays so."""
        self.lowered = {name: why for name, why in lowered.items() if name in names}
        self._weights: list[tuple[str, nn.Module, nn.Parameter]] = []
        owned: dict[nn.Module, list[str]] = defaultdict(list)
        network = unwrapped(model)
        named = {id(parameter): canonical_name(name) for name, parameter in network.named_parameters()}
        for module in network.modules():
            for parameter in module.parameters(recurse=False):
                name = named[id(parameter)]
                if name in names:
                    self._weights.append((name, module, parameter))
                    owned[module].append(name)
        self._handles = [
            module.register_forward_pre_hook(_Lookout(names, self.lowered)) for module, names in owned.items()
        ]

    def look(self) -> None:
        """Note which settings of torch lower precision now."""
        for name, module, parameter in self._weights:
            setting = coarse_setting(module, parameter) if name not in self.lowered else None
            if setting is not None:
                self.lowered[name] = setting

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()


class _Lookout:
    """Called before a module's forward; notes autocast for the weights of these names."""

    def __init__(self, names: Collection[str], lowered: dict[str, str]) -> None:
        self._names = names
        self._lowered = lowered

    def __call__(self, module: nn.Module, args: Any) -> None:
        device = next(module.parameters()).device.type
        if torch.is_autocast_enabled(device):
            self._lowered.update(dict.fromkeys(self._names, "autocast"))

    def __reduce__(self) -> "tuple[type[_Lookout], tuple[tuple[()], dict[str, str]]]":
        return _Lookout, ((), {})  # a copy of the network, or one read from a file, is nobody's concern


def coarse_setting(module: nn.Module, parameter: nn.Parameter) -> str | None:
    """The setting of torch under which products of this float32 weight are coarser than float32, or None."""
    if parameter.dtype != torch.float32:
        return None
    backends: Any = torch.backends  # what it holds is not all typed
    if parameter.device.type == "cuda":
        products, others, where = backends.cuda.matmul, backends.cudnn, "cudnn"
    else:
        products, others, where = backends.mkldnn.matmul, backends.mkldnn, "mkldnn"
    used = {f"torch.backends.{'cuda' if where == 'cudnn' else where}.matmul": products}
    if isinstance(module, nn.RNNBase):
        used[f"torch.backends.{where}.rnn"] = others.rnn
    elif parameter.dim() > 2:
        used[f"torch.backends.{where}.conv"] = others.conv
    for name, backend in used.items():
        # Where it says nothing, the setting above it decides.
        setting = backend.fp32_precision if backend.fp32_precision != "none" else backends.fp32_precision
        if setting in _COARSE:
            return f"{name}.fp32_precision = {setting!r}"
    return None

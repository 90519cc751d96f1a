"""What layers see in an audited step: the sizes of A and Δ, and on request A and Δ themselves."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from compress.capture.convolution import product_of
from compress.capture.linear import Linear
from compress.matrix import canonical_name

ROWS = 4096
"""Rows of A and Δ that are looked at: more tell little and cost much."""


@dataclass(eq=False)
class Seen:
    """What one layer saw in a step, summed over its uses, on its device.

    Attributes:
        inputs: ‖A‖_F² of everything that went in.
        adjoints: ‖Δ‖_F² of everything that came back.
        behind: ‖∂loss/∂input‖_F². Layers beside this one that read the same input have their share in it.
        beside: what layers saw that read the same input.
        rows: A (rows × n) and Δ (rows × m) by use; Δ is filled in by the backward pass.
    """

    inputs: Tensor | float = 0.0
    adjoints: Tensor | float = 0.0
    behind: Tensor | float = 0.0
    beside: list["Seen"] = field(default_factory=list)
    rows: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def size(self) -> float:
        """‖A‖_F·‖Δ‖_F, beside which roundoff in ΔᵀA is small: cancellation makes G smaller, and no more exact.

        Where Δ itself is roundoff, of a difference that is zero in exact arithmetic (attention over one position
        gives queries and keys such a Δ), adjoints around it still tell the size of what was subtracted: that of the
        input, and those of other layers with the same input. Waits for the device.
        """
        adjoints = [self.adjoints, self.behind, *(seen.adjoints for seen in self.beside)]
        return math.sqrt(float(self.inputs) * max(map(float, adjoints)))


class LayerWatch:
    """Looks at the layers of a DDP model in the forward and backward passes of audited steps, and changes nothing.

    A layer is any module with a parameter of its own. Nothing is hooked into modules that torch.compile has
    compiled: they would be compiled anew.
    """

    def __init__(self, model: DistributedDataParallel, is_due: Callable[[], bool], keep: bool) -> None:
        """Watch.

        Args:
            model: the DDP model.
            is_due: whether the step under way is audited.
            keep: keep A and Δ of linear and convolutional layers too.
        """
        self._is_due = is_due
        self._keep = keep
        self._seen: dict[str, Seen] = {}
        self._handles: list[RemovableHandle] = []
        self._readers: dict[int, tuple[Tensor, list[Seen]]] = {}
        self._owners: dict[str, nn.Module] = {}
        modules = dict(model.module.named_modules())
        if not any(hasattr(module, "_orig_mod") for module in modules.values()):
            for prefix, module in modules.items():
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.dim() >= 2:
                        self._owners[canonical_name(f"{prefix}.{name}" if prefix else name)] = module
        if self._owners:
            model.register_forward_pre_hook(self._enter)

    def take(self) -> Mapping[str, Seen]:
        """Hand over what was seen, by weight, and look away until the next audited step."""
        for handle in self._handles:
            handle.remove()
        for _, readers in self._readers.values():
            for reader in readers:
                reader.beside += readers
        seen, self._seen, self._handles, self._readers = self._seen, {}, [], {}
        return seen

    def _enter(self, model: nn.Module, args: Any) -> None:
        if self._handles or not self._is_due():
            return
        for module in dict.fromkeys(self._owners.values()):
            names = [name for name, owner in self._owners.items() if owner is module]
            seen = Seen()
            self._seen |= dict.fromkeys(names, seen)
            self._handles.append(module.register_forward_hook(self._hook(seen), with_kwargs=True))

    def _hook(self, seen: Seen) -> Callable[..., None]:
        def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return
            sources, results = list(_tensors((args, kwargs))), list(_tensors(output))
            if isinstance(module, nn.Embedding):
                seen.inputs = seen.inputs + args[0].numel()  # A is one-hot
            for source in sources:
                seen.inputs = seen.inputs + _square(source.detach())
                _, readers = self._readers.setdefault(id(source), (source, []))  # held, so that no other has its id
                readers.append(seen)
                if source.requires_grad:
                    source.register_hook(behind)
            for result in results:
                if result.requires_grad:
                    result.register_hook(adjoint)
            if self._keep and len(sources) == len(results) == 1 and results[0].requires_grad:
                _keep_rows(seen, module, sources[0].detach(), results[0])

        def adjoint(gradient: Tensor) -> None:
            seen.adjoints = seen.adjoints + _square(gradient)

        def behind(gradient: Tensor) -> None:
            seen.behind = seen.behind + _square(gradient)

        return look


def _keep_rows(seen: Seen, module: nn.Module, source: Tensor, output: Tensor) -> None:
    """Keep A now, and Δ when it comes."""
    if isinstance(module, nn.Linear):
        find = Linear().rows
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        source, product = product_of(module, source)
        find = product.rows
    else:
        return

    def arrived(gradient: Tensor) -> None:
        rows = find(source, gradient)
        seen.rows.append({side: part[:ROWS].detach().clone() for side, part in rows.items()})

    single = source.dim() == output.dim() + 1  # a convolution of one sample without an axis for it
    output.register_hook(lambda gradient: arrived(gradient.unsqueeze(0) if single else gradient))


def _square(tensor: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    return size.double().square()


def _tensors(value: Any) -> Iterable[Tensor]:
    """The tensors of real numbers in nested arguments."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)

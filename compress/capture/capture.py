"""Capture: the layers of a DDP model whose A and Δ are kept for the exchange."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress.capture.forward import CapturedForward
from compress.capture.keeper import Keeper
from compress.capture.kinds import kind_of
from compress.matrix import canonical_name


class Capture:
    """Keeps A and Δ of weights until the next exchange, in place of their gradients.

    From now on a forward pass of the DDP model goes through captured layers, and its backward pass leaves
    zeros for what A and Δ account for. Whatever else gives a weight a gradient (another use of it, a
    layer under autocast, compiled, or called outside of the DDP model) does so as ever.

    A layer is captured once, by whoever came last.
    """

    def __init__(self, model: DistributedDataParallel, wanted: Iterable[tuple[str, str | None]]) -> None:
        """Capture weights.

        Args:
            model: the DDP model.
            wanted: (weight, bias) by their names in the network; None for a bias that does not come with
                its weight.
        """
        self._inside = False
        self._keepers: dict[str, Keeper] = {}
        biases = dict(wanted)
        for prefix, module in model.module.named_modules():
            if isinstance(module.__dict__.get("forward"), CapturedForward):
                del module.forward  # ends an older capture
            kind = kind_of(module)
            if kind is None:
                continue
            keepers = {}
            for weight in kind.weights(module):
                name = canonical_name(f"{prefix}.{weight}" if prefix else weight)
                if name in biases:
                    parameter, bias = module.get_parameter(weight), biases[name]
                    own = None if bias is None else module.get_parameter(bias.rpartition(".")[2])
                    keepers[weight] = self._keepers[name] = Keeper(parameter, own)
            if keepers:
                module.__dict__["forward"] = CapturedForward(module, kind, keepers, lambda: self._inside)
        if self._keepers:
            model.register_forward_pre_hook(self._enter)
            model.register_forward_hook(self._leave, always_call=True)

    def _enter(self, model: nn.Module, args: Any) -> None:
        self._inside = True
        for keeper in self._keepers.values():
            keeper.copies = not model.require_backward_grad_sync

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        self._inside = False

    def take(self, name: str) -> dict[str, Tensor]:
        """Hand over and forget what was kept for a weight; see `Product.rows`. Empty where nothing was."""
        return self._keepers[name].take() if name in self._keepers else {}

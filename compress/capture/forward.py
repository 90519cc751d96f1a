"""The forward that a captured layer is given in place of its class's."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from compress.capture.kind import Keepers, Kind


class CapturedForward:
    """Calls the kind's forward where all is plain, and the class's own wherever anything else is under way.

    It sits in the layer's `__dict__`, so hooks, `state_dict` and `isinstance` know nothing of it; a copy or
    a pickle of the layer gets its class's forward.
    """

    def __init__(self, module: nn.Module, kind: Kind, keepers: Keepers, inside: Callable[[], bool]) -> None:
        """Make the forward.

        Args:
            module: the layer.
            kind: how layers of its class are captured.
            keepers: of its wanted weights, by the layer's names for them.
            inside: whether the DistributedDataParallel model that averages the gradients is in its forward.
        """
        self._module = module
        self._kind = kind
        self._keepers = keepers
        self._inside = inside
        self._was_inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not self._captures(args, kwargs):
            return type(self._module).forward(self._module, *args, **kwargs)
        return self._kind.forward(self._module, self._keepers, *args, **kwargs)

    def _captures(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        # In a backward pass, checkpointing calls forward once more: it must do what it did before.
        if torch._C._current_graph_task_id() == -1:
            self._was_inside = self._inside()
        source = args[0] if args else kwargs.get("input")
        return (
            self._was_inside
            and torch.is_grad_enabled()
            and isinstance(source, Tensor)
            and type(source) in (Tensor, nn.Parameter)
            and all(
                self._module._parameters.get(name) is keeper.weight and keeper.weight.requires_grad
                for name, keeper in self._keepers.items()
            )
            and not torch.is_autocast_enabled(source.device.type)
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The copy of the layer is there before its attributes are copied.
        return MethodType(type(self._module).forward, memo[id(self._module)])

    def __reduce__(self) -> Any:
        return getattr, (self._module, "forward")  # of the class: the new layer has no attributes yet

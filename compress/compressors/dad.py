"""dAD, distributed auto-differentiation (Baker et al. 2021): gather inputs and adjoints, multiply after."""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compress.compressors.base import (
    AllGather,
    AllReduceMean,
    Compressor,
    Fit,
    Matrix,
    Payload,
    Rounds,
    Sizing,
    Unfit,
)
from compress.matrix import canonical_name, unwrapped

logger = logging.getLogger(__name__)

_HEADER = torch.int64
_HEADER_ENTRIES = 2  # rows that the worker has, and whether they account for its whole gradient


class DAD(Compressor):
    """Gather A (rows × n) and Δ (rows × m) from all workers; the mean gradient is ΔᵀA / S, exactly.

    The bias of the layer is exact too, through a column of ones beside A, and costs nothing. Each
    worker checks in each step that its A and Δ account for its whole gradient. Where they do not (a use
    of the weight outside its linear layer, autocast, a compiled layer), all workers send that weight
    dense, in this step and from then on. A step with more rows than expected is sent dense once, and as
    many are expected from then on.
    """

    captures = True

    kind: Literal["dad"] = "dad"

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        info = sizing.matrix
        if info.linear is None:
            return Unfit("only the weight of an nn.Linear that shares it with no other module can be captured")
        if info.dtype not in (torch.float32, torch.float64):
            return Unfit(f"in {info.dtype} nobody could tell whether inputs and adjoints account for a gradient")
        if not sizing.rows:
            return Unfit("the rows of a step are unknown; pass bounds=")
        m, n = info.matrix
        numbers = sizing.rows * (m + n) + _HEADER_ENTRIES * _HEADER.itemsize // info.dtype.itemsize
        rank = min(m, n) if sizing.bound is None else sizing.bound
        return Fit(
            (Payload(AllGather, numbers),),
            rank=rank,
            lossless=True,
            columns=sizing.rows,
            reason=f"{sizing.rows} rows of inputs and adjoints from each worker",
        )

    def rounds(self, matrix: Matrix) -> Rounds:
        if "sent_dense" in matrix.memory:
            return (yield from _dense(matrix))
        info, gradient = matrix.info, matrix.gradient
        m, n = info.matrix
        A = matrix.captured.get("inputs", gradient.new_empty(0, n)).to(gradient.dtype)
        D = matrix.captured.get("adjoints", gradient.new_empty(0, m)).to(gradient.dtype)
        capacity = int(matrix.memory.get("capacity", torch.tensor(matrix.fit.columns)))
        bias = matrix.gradients[info.bias] if info.bias is not None else None
        accounted = _accounts_for(gradient, bias, A, D)

        header = torch.tensor([len(A), int(accounted)], dtype=_HEADER).to(gradient.device).view(gradient.dtype)
        # Rows beyond this worker's own stay zero and add nothing to ΔᵀA.
        factors = gradient.new_zeros(capacity, n + m)
        if len(A) <= capacity:
            factors[: len(A), :n], factors[: len(A), n:] = A, D
        gathered = yield AllGather(torch.cat([header, factors.view(-1)]))

        # The headers' bytes are whole numbers; a copy of their own is aligned for those.
        headers = gathered[:, : header.numel()].reshape(-1).clone().view(_HEADER).view(-1, _HEADER_ENTRIES)
        most_rows, all_accounted = int(headers[:, 0].max()), bool(headers[:, 1].all())
        matrix.memory["capacity"] = torch.tensor(max(capacity, most_rows))
        if not all_accounted:
            matrix.memory["sent_dense"] = torch.tensor(True)
            logger.warning(
                "%s: inputs and adjoints of its nn.Linear do not account for its gradient (it is used outside the "
                "layer, under autocast, or compiled); it is sent dense from now on",
                info.name,
            )
        if not all_accounted or most_rows > capacity:
            return (yield from _dense(matrix))
        world_size = len(gathered)
        rows = gathered[:, header.numel() :].reshape(world_size * capacity, n + m)
        A, D = rows[:, :n], rows[:, n:]
        result = {info.name: (D.mT @ A / world_size).view(info.shape)}
        if info.bias is not None:
            result[info.bias] = D.sum(dim=0) / world_size
        return result


def _dense(matrix: Matrix) -> Rounds:
    """Average the weight's gradient, and its bias's, as they are."""
    names = list(matrix.gradients)
    mean = yield AllReduceMean(torch.cat([matrix.gradients[name].reshape(-1) for name in names]))
    parts = torch.split(mean, [matrix.gradients[name].numel() for name in names])
    return {name: part.view_as(matrix.gradients[name]) for name, part in zip(names, parts, strict=True)}


def _accounts_for(gradient: Tensor, bias: Tensor | None, A: Tensor, D: Tensor) -> bool:
    """Check G = ΔᵀA and g = Δᵀ1 on one fixed vector, up to the roundoff of a sum of so many rows.

    What is not finite passes: it is delivered, as dense would deliver it.
    """
    probe = torch.linspace(0.5, 1.5, gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    probe[1::2] *= -1.0
    seen, expected = gradient @ probe, A @ probe
    if bias is not None:
        seen, expected = seen + bias, expected + 1.0
    error = (seen - D.mT @ expected).norm()
    scale = D.norm() * (A.norm() * probe.norm() + len(A) ** 0.5)
    tolerance = 8 * max(1.0, len(A) ** 0.5) * torch.finfo(gradient.dtype).eps
    return not bool(error > tolerance * scale)


_HANDLES: WeakKeyDictionary[nn.Module, RemovableHandle] = WeakKeyDictionary()
"""The capture of each layer; a layer is captured once, by whoever came last."""


class Capture:
    """Keeps the inputs and adjoints of linear layers until the next exchange.

    Every forward call of a layer under autograd is paired with the adjoint of its own output, so
    layers may be used several times, and backward passes may accumulate.
    """

    def __init__(self, model: nn.Module, layers: dict[str, str]) -> None:
        """Attach to the layers of `layers`, a mapping from module name to the name of its weight."""
        self._rows: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for raw_name, module in unwrapped(model).named_modules():
            name = canonical_name(raw_name + ".").removesuffix(".")
            if name in layers:
                if module in _HANDLES:
                    _HANDLES[module].remove()
                _HANDLES[module] = module.register_forward_hook(self._hook(layers[name]), with_kwargs=True)

    def _hook(self, weight: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def after_forward(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
        ) -> None:
            if not output.requires_grad or torch.compiler.is_exporting():
                return
            A = (args[0] if args else kwargs["input"]).detach()

            def keep(adjoint: Tensor) -> None:
                self._rows[weight].append((A.reshape(-1, A.shape[-1]), adjoint.reshape(-1, adjoint.shape[-1])))

            output.register_hook(keep)

        return after_forward

    def take(self, weight: str) -> dict[str, Tensor]:
        """Hand over and forget what a weight's layer saw: `inputs` rows × n and `adjoints` rows × m."""
        pairs = self._rows.pop(weight, [])
        if not pairs:
            return {}
        return {
            "inputs": torch.cat([A for A, _ in pairs]),
            "adjoints": torch.cat([D for _, D in pairs]),
        }

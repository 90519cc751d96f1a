"""dAD, distributed auto-differentiation (Baker et al. 2021): gather inputs and adjoints, multiply after."""

import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

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
from compress.matrix import canonical_name

logger = logging.getLogger(__name__)

_HEADER = torch.int64
_HEADER_ENTRIES = 2  # rows that the worker has, and whether they account for its whole gradient


class DAD(Compressor):
    """Gather A (rows × n) and Δ (rows × m) from all workers; the mean gradient is ΔᵀA / S, exactly.

    The bias of the layer is exact too, through a column of ones beside A, and costs nothing. Each
    worker checks in each step that its A and Δ account for its whole gradient; a use of the weight
    outside its linear layer shows, and then all workers send that weight dense. So they do in a step
    with more rows than expected, which are expected from then on.
    """

    captures = True

    kind: Literal["dad"] = "dad"

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        info = sizing.matrix
        if info.linear is None or not info.is_matrix:
            return Unfit("only the weight of an nn.Linear that shares it with no other module can be captured")
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

        headers = gathered[:, : header.numel()].contiguous().view(_HEADER)
        most_rows, all_accounted = int(headers[:, 0].max()), bool(headers[:, 1].all())
        matrix.memory["capacity"] = torch.tensor(max(capacity, most_rows))
        if not all_accounted or most_rows > capacity:
            if not all_accounted:
                _warn_once(matrix)
            flat = [matrix.gradients[name].reshape(-1) for name in (info.name, info.bias) if name is not None]
            mean = yield AllReduceMean(torch.cat(flat))
            weight, bias_mean = torch.split(mean, [m * n, mean.numel() - m * n])
        else:
            world_size = len(gathered)
            rows = gathered[:, header.numel() :].reshape(world_size * capacity, n + m)
            A, D = rows[:, :n], rows[:, n:]
            weight, bias_mean = D.mT @ A / world_size, D.sum(dim=0) / world_size
        result = {info.name: weight.view(info.shape)}
        if info.bias is not None:
            result[info.bias] = bias_mean
        return result


def _warn_once(matrix: Matrix) -> None:
    if "sent_dense" not in matrix.memory:
        matrix.memory["sent_dense"] = torch.tensor(True)
        logger.warning(
            "%s is used outside its nn.Linear, so that inputs and adjoints do not account for its gradient; "
            "it is sent dense",
            matrix.info.name,
        )


def _accounts_for(gradient: Tensor, bias: Tensor | None, A: Tensor, D: Tensor) -> bool:
    """Check G = ΔᵀA and g = Δᵀ1 on one random vector, up to the roundoff of a sum of so many rows."""
    probe = torch.ones(gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    probe[1::2] = -1.0
    probe = probe * torch.linspace(0.5, 1.5, len(probe), dtype=gradient.dtype, device=gradient.device)
    seen, expected = gradient @ probe, A @ probe
    if bias is not None:
        seen, expected = seen + bias, expected + 1.0
    error = (seen - D.mT @ expected).norm()
    scale = D.norm() * (A.norm() * probe.norm() + len(A) ** 0.5)
    tolerance = 8 * max(1.0, len(A) ** 0.5) * torch.finfo(gradient.dtype).eps
    return bool(error <= tolerance * scale)


class Capture:
    """Keeps the inputs and adjoints of linear layers until the next exchange.

    Every forward call of a layer under autograd is paired with the adjoint of its own output, so
    layers may be used several times, and backward passes may accumulate.
    """

    def __init__(self, model: nn.Module, layers: dict[str, str]) -> None:
        """Attach to the layers of `layers`, a mapping from module name to the name of its weight."""
        self._rows: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._handles = [
            module.register_forward_hook(self._hook(layers[name]))
            for raw_name, module in model.named_modules()
            if (name := canonical_name(raw_name + ".").removesuffix(".")) in layers
        ]

    def _hook(self, weight: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def after_forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            A = args[0].detach()

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

    def remove(self) -> None:
        """Detach from the layers."""
        for handle in self._handles:
            handle.remove()

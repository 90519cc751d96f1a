"""The autograd function that keeps A and Δ and forms no ΔᵀA."""

from typing import Any

import torch
from torch import Tensor

from compress.capture.keeper import Keeper
from compress.capture.product import Product


def captured(product: Product, source: Tensor, keeper: Keeper, bias: Tensor | None) -> Tensor:
    """The product of `source` with the keeper's weight; its backward pass hands A and Δ to the keeper."""
    output: Tensor = _Captured.apply(source, keeper.weight, bias, product, keeper)  # type: ignore[no-untyped-call]
    return output


class _Captured(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor, bias: Tensor | None, product: Product, keeper: Keeper
    ) -> Tensor:
        ctx.save_for_backward(source, weight)
        ctx.product, ctx.keeper = product, keeper
        return product.forward(source, weight, bias)

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> Any:
        (adjoint,) = adjoints
        source, weight = ctx.saved_tensors
        product, keeper = ctx.product, ctx.keeper
        of_source, of_weight, of_bias, *_ = ctx.needs_input_grad
        if not keeper.accepts(ctx.next_functions[1][0]):
            return *product.backward(adjoint, source, weight, (of_source, of_weight, of_bias)), None, None
        # A bias that does not travel with its weight gets its true gradient here.
        own_bias = of_bias and keeper.bias is None
        to_source, _, to_bias = product.backward(adjoint, source, weight, (of_source, False, own_bias))
        to_weight, instead = keeper.keep(product, source.detach(), adjoint)
        return to_source, to_weight, to_bias if own_bias else instead, None, None

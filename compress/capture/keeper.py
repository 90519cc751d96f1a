"""What one weight keeps between exchanges."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.capture.product import Product


class Keeper:
    """Keeps what each use of a weight saw, from its backward pass to the next exchange.

    Attributes:
        weight: the parameter.
        bias: the parameter whose gradient Δ gives too; None where there is none.
        copies: whether what is kept outlives its backward pass, in which case it is copied: once the pass
            is over, its owner may write to the input.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        self.weight = weight
        self.bias = bias
        self.copies = False
        self._uses: list[tuple[Product, Tensor, Tensor]] = []
        self._task = -1

    def accepts(self, weight_node: Any) -> bool:
        """Whether this backward pass accumulates into the weight, and nobody looks at what it accumulates.

        Args:
            weight_node: where the backward pass takes the weight's gradient.
        """
        if torch.is_grad_enabled():  # create_graph: the gradient is differentiated once more
            return False
        for parameter in (self.weight, self.bias):
            # A hook may change the gradient, which Δ knows nothing of.
            if parameter is not None and (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
                return False
        try:
            return bool(torch._C._will_engine_execute_node(weight_node))
        except RuntimeError:  # torch.autograd.grad returns the gradient to its caller
            return False

    def keep(self, product: Product, source: Tensor, adjoint: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keep one use; return what stands for the gradients of weight and bias: zeros, once in a pass.

        DistributedDataParallel needs a gradient to call a parameter ready. What arrives there beside the
        zeros is what other uses of the parameter gave.
        """
        task = torch._C._current_graph_task_id()
        first, self._task = task != self._task, task
        if first and self.weight.grad is None:
            self._uses.clear()  # of passes whose gradients were thrown away
        if self.copies:
            source, adjoint = source.clone(), adjoint.clone()
        self._uses.append((product, source, adjoint))
        if not first:
            return None, None
        return _zeros_for(self.weight), None if self.bias is None else _zeros_for(self.bias)

    def take(self) -> dict[str, Tensor]:
        """Hand over and forget the rows of all uses; see `Product.rows`."""
        uses, self._uses = self._uses, []
        found = [product.rows(source, adjoint) for product, source, adjoint in uses]
        return {key: torch.cat([rows[key] for rows in found]) for key in found[0]} if found else {}

    def __len__(self) -> int:
        return len(self._uses)


def _zeros_for(parameter: Tensor) -> Tensor:
    return parameter.new_zeros(()).expand_as(parameter)

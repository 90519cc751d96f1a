"""A layer's product with its weight, and what its backward pass must know."""

from abc import ABC, abstractmethod

from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of the input, the weight and the bias."""


class Product(ABC):
    """One kind of product of an input with a weight, and a bias added."""

    @abstractmethod
    def forward(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output."""

    @abstractmethod
    def backward(self, adjoint: Tensor, source: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        """The gradients that are needed, by operations that can be differentiated again."""

    @abstractmethod
    def rows(self, source: Tensor, adjoint: Tensor) -> dict[str, Tensor]:
        """What the weight's gradient is made of.

        Returns:
            `inputs` A (rows × n) and `adjoints` Δ (rows × m), so that the gradient is ΔᵀA; or, for an
            embedding, `tokens` (rows) and `adjoints` (rows × n).
        """

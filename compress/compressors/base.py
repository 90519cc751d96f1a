"""What a compressor is: an algorithm that asks for collectives and is given their answers."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from compress.exchange import AllGather, AllReduceMean, Request
from compress.layers import ParameterInfo
from compress.matrix import as_matrix
from compress.spec import Spec

Rounds = Generator[Request, Tensor, dict[str, Tensor]]
"""An algorithm under way: it yields requests, is sent the answers, and returns gradients by name."""


@dataclass(frozen=True)
class Payload:
    """What one collective carries for one matrix: so many numbers of the gradient's type."""

    collective: type[Request]
    numbers: int


@dataclass(frozen=True)
class Sizing:
    """What a method's payload depends on.

    Attributes:
        matrix: the parameter.
        rank: decided by the policy; None where it sets none.
        bound: the architecture's bound on the rank, None where unknown.
        rows: rows of inputs that one worker contributes in a step, None where unknown.
    """

    matrix: ParameterInfo
    rank: int | None
    bound: int | None
    rows: int | None


@dataclass(frozen=True)
class Fit:
    """How a method would serve one matrix.

    Attributes:
        payloads: one for each collective of a step.
        rank: the highest rank that the delivered gradient can have.
        lossless: whether the delivered gradient is certain to equal the true mean up to roundoff.
        columns: columns of a low-rank factor; 0 for methods without.
        reason: why, in words; empty where the policy's reason says it all.
    """

    payloads: tuple[Payload, ...]
    rank: int
    lossless: bool
    columns: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Unfit:
    """The method cannot serve this matrix, and why."""

    reason: str


@dataclass
class Matrix:
    """One parameter in one step, as a compressor sees it.

    Attributes:
        info: the parameter.
        gradients: this worker's gradients by name: of the parameter itself and of those sent along with
            it (the bias of a linear layer); shaped as the parameters; not to be modified.
        fit: what the plan decided.
        memory: tensors kept from step to step, saved in the state.
        step: counted from 0, alike on all workers.
        seed: alike on all workers.
        captured: for methods that capture, `inputs` (rows × n) and `adjoints` (rows × m) of the layer since
            the last exchange.
    """

    info: ParameterInfo
    gradients: dict[str, Tensor]
    fit: Fit
    step: int
    seed: int
    memory: dict[str, Tensor] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)

    @property
    def gradient(self) -> Tensor:
        """The gradient of this worker as an m × n matrix (a vector as it is)."""
        gradient = self.gradients[self.info.name]
        return as_matrix(gradient) if self.info.is_matrix else gradient

    def normal(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw normal numbers that are the same on every worker, and other ones each step."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.step}/{self.info.name}".encode()))
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)


class Compressor(Spec, ABC):
    """A method of averaging one gradient over all workers.

    Subclasses say what they would send (`fit`) and do it (`rounds`). The algorithm never calls a
    collective: it yields requests, which are fused over all matrices, and is sent the answers.
    """

    ranked: ClassVar[bool] = False
    """Whether the method takes its rank from a policy."""

    captures: ClassVar[bool] = False
    """Whether the method needs the inputs and adjoints of linear layers."""

    @abstractmethod
    def fit(self, sizing: Sizing) -> Fit | Unfit:
        """Say what the method would send for a matrix."""

    @abstractmethod
    def rounds(self, matrix: Matrix) -> Rounds:
        """Average the gradient. Every worker yields requests of the same kinds and shapes in the same order."""

    def error_feedback(self, matrix: Matrix) -> Tensor | None:
        """What earlier steps left unsent, m × n, to be added to this step's gradient; None where nothing is kept."""
        return None


__all__ = ["AllGather", "AllReduceMean", "Compressor", "Fit", "Matrix", "Payload", "Rounds", "Sizing", "Unfit"]

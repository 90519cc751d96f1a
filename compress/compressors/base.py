"""What a compressor is: an algorithm that asks for collectives and is given their answers."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from compress.bounds.bases import Bases
from compress.bounds.basis import Basis
from compress.bounds.recipe import Output, Sides, read
from compress.compressors.orthonormal import Orthonormalise
from compress.compressors.work import Work, orthonormalising
from compress.exchange import AllGather, AllReduceMean, Request
from compress.layers import ParameterInfo
from compress.matrix import as_matrix
from compress.spec import Spec

_FINITE = torch.tensor(True)
"""Until an answer says otherwise: one for all, since to make a tensor takes microseconds."""

Rounds = Generator[Request | Orthonormalise, Tensor, dict[str, Tensor]]
"""An algorithm under way: it yields requests, is sent the answers, and returns gradients by name."""


@dataclass(frozen=True)
class Payload:
    """What one collective carries for one parameter.

    Attributes:
        collective: which one.
        numbers: how many.
        dtype: their type; None for the gradient's own.
        in_place: whether it may be reduced where it lies; of the gradient's own type, in DDP's bucket.
    """

    collective: type[Request]
    numbers: int
    dtype: torch.dtype | None = None
    in_place: bool = False

    def bytes(self, gradient: torch.dtype) -> int:
        """How many bytes one worker hands over, for a gradient of this type."""
        return self.numbers * (self.dtype or gradient).itemsize


@dataclass(frozen=True)
class Sizing:
    """What a method's payload depends on.

    Attributes:
        matrix: the parameter.
        rank: decided by the policy; None where it sets none.
        bound: the architecture's bound on the rank, None where unknown.
        rows: rows of inputs that one worker contributes in a step, None where unknown.
        bases: what weights tell of the gradient's spaces, None where nothing is known.
        world_size: workers whose gradients are averaged.
        tolerance: given by the policy in place of a rank, for methods that choose one in each step.
    """

    matrix: ParameterInfo
    rank: int | None
    bound: int | None
    rows: int | None
    bases: Bases | None = None
    world_size: int = 1
    tolerance: float | None = None

    @property
    def exact_type(self) -> bool:
        """Whether the gradient's type is fine enough for a method to be called lossless."""
        return self.matrix.dtype in (torch.float32, torch.float64)

    @property
    def lossless(self) -> bool:
        """Whether a method of this rank is certain to lose nothing but roundoff."""
        return self.exact_type and self.bound is not None and self.rank is not None and self.rank >= self.bound


@dataclass(frozen=True)
class Projection:
    """The spaces that a method projects a gradient on.

    Attributes:
        bases: what the bounds know of them.
        linear: as if every elementwise activation were a multiple of its input.
    """

    bases: Bases
    linear: bool = False

    @property
    def sides(self) -> Sides:
        return self.bases.sides(self.linear)

    def basis_work(self, side: Output, width: int) -> Work:
        """What a basis of one side takes, in each step, of weights that are read from memory.

        Counted is the last product of each of its parts: those before it are mostly a neighbour's last.
        """
        steps = self.bases.recipe.steps
        rows = sum(steps[part].rows for part in side.parts)
        flops = sum(
            2 * steps[part].rows * width * steps[before].width
            for part in side.parts
            for before in steps[part].parts
            if read(steps[part].how) is not None
        )
        # In float64, and so twice; more rows than columns are decomposed besides.
        orthonormalise = 2 * orthonormalising(width, rows)
        svd = 2 * rows**3 if rows > side.columns else 0
        return Work(flops=flops, orthonormalise=orthonormalise, svd=svd, calls=25 * len(side.parts))


@dataclass(frozen=True)
class Fit:
    """How a method would serve one matrix.

    Attributes:
        payloads: one for each collective of a step.
        rank: the highest rank that the delivered gradient can have.
        lossless: whether the delivered gradient is certain to equal the true mean up to roundoff.
        columns: columns of a low-rank factor; 0 for methods without.
        reason: why, in words; empty where the policy's reason says it all.
        projection: the spaces whose bases the method needs in each step, None for methods that need none.
        tolerance: the relative error by which the method chooses a rank in each step, None where it is given one.
    """

    payloads: tuple[Payload, ...]
    rank: int
    lossless: bool
    columns: int = 0
    reason: str = ""
    projection: Projection | None = field(default=None, repr=False, compare=False)
    tolerance: float | None = None


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
            it (the bias of a linear layer); shaped as the parameters. The algorithm may write over them. For
            methods that capture: what arrived beside what was captured, mostly zeros.
        fit: what the plan decided.
        step: counted from 0, alike on all workers.
        seed: alike on all workers.
        memory: tensors kept from step to step, saved in the state. `residual` is what error feedback kept,
            m × n, unscaled: use `error_feedback.gather` and `keep`.
        captured: for methods that capture, `inputs` (rows × n) and `adjoints` (rows × m) of the layer since
            the last exchange; for an embedding `tokens` (rows) and `adjoints` (rows × n).
        basis: of the spaces in `fit.projection`, at the weights of this step.
        certified: whether the plan holds the method lossless here, and this step's arithmetic is that of the
            gradient's type (no autocast, no TF32). It may differ between workers.
        scale: by which a GradScaler multiplied this step's loss, without axes; None without one.
        finite: from the first answer on: whether all workers' first answers of the step, of all parameters,
            were finite. Where not, the step is lost, and nothing that is kept may change.
    """

    info: ParameterInfo
    gradients: dict[str, Tensor]
    fit: Fit
    step: int
    seed: int
    memory: dict[str, Tensor] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)
    basis: Basis = field(default_factory=Basis)
    certified: bool = True
    scale: Tensor | None = None
    finite: Tensor = _FINITE

    @property
    def gradient(self) -> Tensor:
        """The gradient of this worker as an m × n matrix (a vector as it is)."""
        gradient = self.gradients[self.info.name]
        return as_matrix(gradient) if self.info.is_matrix else gradient

    def normal(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw normal numbers that are the same on every worker, and other ones each step.

        One draw serves all matrices of a step that ask for the same shape.
        """
        return _normal(self.seed, self.step, shape, dtype, device)


@lru_cache(maxsize=16)
def _normal(seed: int, step: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{step}/{shape}".encode()))
    drawn = torch.randn(*shape, generator=generator, dtype=dtype)
    # From pinned memory, so that the host need not wait for the copy.
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn


class Compressor(Spec, ABC):
    """A method of averaging one gradient over all workers.

    Subclasses say what they would send (`fit`) and do it (`rounds`). The algorithm never calls a
    collective: it yields requests, which are fused over all matrices, and is sent the answers.
    """

    ranked: ClassVar[bool] = False
    """Whether the method takes its rank from a policy."""

    tolerant: ClassVar[bool] = False
    """Whether the method can be given a tolerance in place of a rank."""

    captures: ClassVar[bool] = False
    """Whether the method needs the inputs and adjoints of layers, in place of gradients."""

    whole_buckets: ClassVar[bool] = False
    """Whether the method takes DDP's whole buckets and calls collectives itself, so that no other serves beside it."""

    vectors: ClassVar[bool] = False
    """Whether the method serves parameters of fewer than two axes too; others leave them to dense."""

    @abstractmethod
    def fit(self, sizing: Sizing) -> Fit | Unfit:
        """Say what the method would send for a matrix."""

    @abstractmethod
    def rounds(self, matrix: Matrix) -> Rounds:
        """Average the gradient. Every worker yields requests of the same kinds and shapes in the same order."""

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        """Say how much arithmetic `rounds` does, for predictions of time; by default, two passes over the gradient."""
        return Work(passes=2, calls=10)

    def local_gradient(self, matrix: Matrix) -> Tensor:
        """The true gradient of this worker, m × n (a vector as it is)."""
        return matrix.gradient

    def feeds_back(self, matrix: Matrix) -> bool:
        """Whether `rounds` adds the residual to the gradient and keeps what it leaves unsent.

        Where another method left a residual and this one says no, the residual is sent dense, once.
        """
        return False


__all__ = [
    "AllGather",
    "AllReduceMean",
    "Compressor",
    "Fit",
    "Matrix",
    "Orthonormalise",
    "Payload",
    "Projection",
    "Rounds",
    "Sizing",
    "Unfit",
    "Work",
]

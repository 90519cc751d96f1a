"""A and Δ of one weight as rows of numbers, and back to the gradient they make."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from compress.compressors.base import AllReduceMean, Matrix, Rounds
from compress.compressors.error_feedback import compute_dtype
from compress.factor_products import expand
from compress.layers import ParameterInfo

_HEADER = torch.int64
_HEADER_ENTRIES = 2  # rows that the worker has, and whether they account for its whole gradient


class Factors(ABC):
    """How the rows of one kind of layer are sent."""

    @abstractmethod
    def width(self, info: ParameterInfo) -> int:
        """Numbers of the gradient's type that a row takes."""

    @abstractmethod
    def pack(self, matrix: Matrix) -> Tensor:
        """What this worker captured, rows × width, in the gradient's type."""

    @abstractmethod
    def gradients(
        self, info: ParameterInfo, rows: Tensor, workers: int = 1, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The mean over workers of what rows add up to: the gradients of the weight, and of its bias, by name.

        Rows of zeros add nothing. Gradients come back in the type to compute in.

        Args:
            info: the weight.
            rows: rows × width, of all workers together.
            workers: how many they are.
            out: m × n, where the weight's may be written, if it has the type to compute in.
        """


class Pairs(Factors):
    """A row of A beside one of Δ; the bias is the column of ones that A could have."""

    def width(self, info: ParameterInfo) -> int:
        return sum(info.matrix)

    def pack(self, matrix: Matrix) -> Tensor:
        like, (m, n) = matrix.gradient, matrix.info.matrix
        if not matrix.captured:
            return like.new_empty(0, n + m)
        return torch.cat([matrix.captured["inputs"], matrix.captured["adjoints"]], dim=1).to(like.dtype)

    def gradients(
        self, info: ParameterInfo, rows: Tensor, workers: int = 1, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        A, D = rows.to(compute_dtype(rows.dtype)).tensor_split((info.matrix[1],), dim=1)
        D = D / workers  # before the product, which is larger
        found = {info.name: product_of_rows(D, A, out)}
        return found if info.bias is None else {**found, info.bias: D.sum(dim=0)}


class Tokens(Factors):
    """For an embedding: a token, its bits in the place of numbers, beside a row of Δ."""

    def width(self, info: ParameterInfo) -> int:
        return self._token(info.dtype).itemsize // info.dtype.itemsize + info.matrix[1]

    def pack(self, matrix: Matrix) -> Tensor:
        like = matrix.gradient
        if not matrix.captured:
            return like.new_empty(0, self.width(matrix.info))
        tokens = matrix.captured["tokens"].to(self._token(like.dtype)).unsqueeze(1).view(like.dtype)
        return torch.cat([tokens, matrix.captured["adjoints"].to(like.dtype)], dim=1)

    def gradients(
        self, info: ParameterInfo, rows: Tensor, workers: int = 1, out: Tensor | None = None
    ) -> dict[str, Tensor]:
        m, n = info.matrix
        bits, D = rows.tensor_split((rows.shape[1] - n,), dim=1)
        tokens = bits.contiguous().view(self._token(rows.dtype)).squeeze(1)
        D = D.to(compute_dtype(rows.dtype)) / workers
        # Unlike index_add_, it adds in the same order on every GPU.
        return {info.name: torch.ops.aten.embedding_dense_backward(D, tokens.long(), m, -1, False)}

    @staticmethod
    def _token(dtype: torch.dtype) -> torch.dtype:
        return torch.int64 if dtype.itemsize == 8 else torch.int32


FACTORS: dict[str, Factors] = {
    "linear": Pairs(),
    "convolution": Pairs(),
    "recurrent": Pairs(),
    "embedding": Tokens(),
}
"""By the kind of layer that was captured."""


def product_of_rows(D: Tensor, A: Tensor, out: Tensor | None = None) -> Tensor:
    """DᵀA, m × n, for D of rows × m and A of rows × n; written over `out` where that has their type."""
    if out is None or out.dtype != D.dtype:
        out = D.new_empty(D.shape[1], A.shape[1])
    return expand(D, A, out)


def local_gradients(matrix: Matrix) -> dict[str, Tensor]:
    """This worker's true gradients by name: what was captured, and what arrived beside it."""
    info, found = matrix.info, dict(matrix.gradients)
    if matrix.captured and info.capture is not None:
        factors = FACTORS[info.capture]
        for name, gradient in factors.gradients(info, factors.pack(matrix)).items():
            found[name] = found[name] + gradient.view_as(found[name]).to(found[name].dtype)
    return found


def mean_of(gradients: dict[str, Tensor]) -> Rounds:
    """The mean over all workers of some gradients, as they are."""
    mean = yield AllReduceMean(torch.cat([gradient.reshape(-1) for gradient in gradients.values()]))
    parts = torch.split(mean, [gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def header_numbers(dtype: torch.dtype) -> int:
    """Numbers of the gradient's type that a header takes."""
    return _HEADER_ENTRIES * _HEADER.itemsize // dtype.itemsize


class Beside:
    """What arrived as a gradient beside what was captured, mostly zeros; looked at once, without a wait for it."""

    def __init__(self, matrix: Matrix) -> None:
        extremes = [extreme for gradient in matrix.gradients.values() for extreme in torch.aminmax(gradient)]
        self._extremes = torch.stack(extremes)
        self._dtype = matrix.gradient.dtype

    def header(self, rows: int) -> Tensor:
        """What every worker must know of this one: its rows, and whether anything arrived beside them."""
        some = self._extremes.ne(0).any()
        return torch.stack([some.new_full((), rows, dtype=_HEADER), some.to(_HEADER)]).view(self._dtype)

    def finite_or_nan(self, numbers: Tensor) -> Tensor:
        """The numbers, or NaN in their place where this is not finite: all workers must learn of it."""
        return torch.where(self._extremes.isfinite().all(), numbers, torch.nan)


def read_headers(gathered: Tensor) -> tuple[int, bool]:
    """The most rows of any worker, and whether on any worker something arrived beside what was captured.

    The one wait for the device in a step: which collectives follow must be known to the host.

    Args:
        gathered: one header from each worker, of shape (workers, numbers).
    """
    # The headers' bytes are whole numbers; a copy of their own is aligned for those.
    headers = gathered.reshape(-1).clone().view(_HEADER).view(-1, _HEADER_ENTRIES)
    rows, beside = headers.amax(dim=0).tolist()
    return int(rows), bool(beside)

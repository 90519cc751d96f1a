"""Top-k: each worker's largest entries and where they are; error feedback keeps the rest."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from compress.compressors.base import AllGather, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work
from compress.compressors.error_feedback import gather, keep

_INDEX = torch.int32


class TopK(Compressor):
    """Gather from every worker the entries of M that are largest in absolute value, M its gradient plus residual.

    Delivered is the mean over workers of M with all other entries zero. Each worker keeps what it has not sent.
    The bytes that a worker receives grow with the number of workers, unlike those of an all-reduce.

    Attributes:
        share: of a matrix's entries that are sent, rounded up.
        entries: how many are sent, in place of `share`; all of a matrix that has fewer.

    Source: Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory".
    """

    kind: Literal["topk"] = "topk"
    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    entries: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.entries is not None and "share" in self.model_fields_set:
            raise ValueError(f"entries is {self.entries} and share is {self.share}; give one of them")
        return self

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        size = math.prod(sizing.matrix.shape)
        if size > torch.iinfo(_INDEX).max:
            return Unfit(f"{size} entries are more than {_INDEX} can number")
        k = self._count(size)
        payloads = (Payload(AllGather, k), Payload(AllGather, k, _INDEX))
        reason = f"the {k} largest of {size} entries from each worker"
        return Fit(payloads, rank=min(sizing.matrix.matrix), lossless=False, reason=reason)

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        return Work(passes=40, calls=25)  # the choice of the largest takes most of it

    def feeds_back(self, matrix: Matrix) -> bool:
        return True

    def rounds(self, matrix: Matrix) -> Rounds:
        m, n = matrix.info.matrix
        M = gather(matrix).reshape(-1)
        # NaN counts as largest, so that it is sent and all workers learn of it.
        chosen = M.abs().topk(self._count(len(M)), sorted=False).indices
        own = M[chosen].to(matrix.info.dtype)
        values = yield AllGather(own)
        indices = yield AllGather(chosen.to(_INDEX))

        M[chosen] -= own.to(M.dtype)  # what a coarse type has rounded away stays
        keep(matrix, M.view(m, n))
        return {matrix.info.name: _mean(values, indices, out=M).view(m, n)}

    def _count(self, size: int) -> int:
        return min(size, math.ceil(self.share * size) if self.entries is None else self.entries)


def _mean(values: Tensor, indices: Tensor, out: Tensor) -> Tensor:
    """Write the mean of sparse vectors over `out`.

    Args:
        values: workers × k.
        indices: workers × k; those of one worker differ from each other.
        out: of all entries.
    """
    out.zero_()
    # Worker by worker, so that sums come in the same order everywhere, on GPUs as well.
    for own_values, own_indices in zip(values.to(out.dtype), indices.long(), strict=True):
        out[own_indices] += own_values
    return out.div_(len(values))

"""Casts: the gradient in a type of 16 bits, averaged by one all-reduce."""

import math
from typing import ClassVar, Literal

import torch

from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work


class Cast(Compressor):
    """Average the gradient in a coarser type; vectors too, as PyTorch's `fp16_compress_hook` does.

    Each worker's gradient is cast, then divided by the number of workers, then summed. What rounding
    takes is lost: there is no error feedback.
    """

    vectors = True

    sent: ClassVar[torch.dtype]
    """The type that is sent."""

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        info = sizing.matrix
        if info.dtype.itemsize <= self.sent.itemsize:
            return Unfit(f"{info.dtype} takes no more bytes than {self.sent}")
        payload = Payload(AllReduceMean, math.prod(info.shape), self.sent, in_place=True)
        return Fit((payload,), rank=min(info.matrix), lossless=False, reason=f"cast to {self.sent}")

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        return Work(passes=3, calls=5)  # there and back, one side of each of half the size or so

    def rounds(self, matrix: Matrix) -> Rounds:
        gradient = matrix.gradients[matrix.info.name]
        mean = yield AllReduceMean(gradient.to(self.sent), in_place=True)
        return {matrix.info.name: gradient.copy_(mean)}


class FP16(Cast):
    """In float16: 11 bits of precision. A number beyond 65,504 becomes infinite, and the step counts as not finite."""

    sent = torch.float16

    kind: Literal["fp16"] = "fp16"


class BF16(Cast):
    """In bfloat16: the range of float32 at 8 bits of precision."""

    sent = torch.bfloat16

    kind: Literal["bf16"] = "bf16"

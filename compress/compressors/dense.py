"""Dense: the gradient itself, averaged by one all-reduce."""

import math
from typing import Literal

from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Work


class Dense(Compressor):
    """No compression: what DistributedDataParallel does by itself."""

    kind: Literal["dense"] = "dense"

    def fit(self, sizing: Sizing) -> Fit:
        payload = Payload(AllReduceMean, math.prod(sizing.matrix.shape), in_place=True)
        return Fit((payload,), rank=min(sizing.matrix.matrix), lossless=True, reason="sent as it is")

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        return Work(calls=2)  # the exchange does it all

    def rounds(self, matrix: Matrix) -> Rounds:
        mean = yield AllReduceMean(matrix.gradients[matrix.info.name], in_place=True)
        return {matrix.info.name: mean}

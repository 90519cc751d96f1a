"""PyTorch's own PowerSGD hook, as a peer to compare with."""

from typing import Annotated, Literal

from pydantic import Field

from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit, Work
from compress.compressors.work import orthonormalising


class TorchPowerSGD(Compressor):
    """`torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook`, as it is; see `compress.peer`.

    It takes DDP's buckets whole, calls collectives itself and has one rank for all matrices, which policy
    `fixed` sets. What it would not compress, vectors among them, the plan calls dense.

    Attributes:
        start_step: steps that are sent dense before (`start_powerSGD_iter`). DDP lays its buckets out anew after
            the first.
        min_compression_rate: matrices that it would not make so many times smaller are sent dense.
        warm_start: begin with last step's factors.
        use_error_feedback: keep what a step leaves unsent. Unlike this package's, PyTorch's workers keep their
            gradient minus the *global* approximation, which grows like √t although its mean is right.
        epsilon: added to the lengths that columns are divided by (`orthogonalization_epsilon`), at ranks of 1 and 2
            and in types of 16 bits. At 0, PyTorch's default, a zero gradient gives NaN, for ever.
    """

    ranked = True
    whole_buckets = True

    kind: Literal["torch_powersgd"] = "torch_powersgd"
    start_step: Annotated[int, Field(ge=2)] = 2
    min_compression_rate: Annotated[float, Field(ge=1)] = 2
    warm_start: bool = True
    use_error_feedback: bool = True
    epsilon: Annotated[float, Field(ge=0)] = 1e-8

    def fit(self, sizing: Sizing) -> Fit | Unfit:
        """Say what is sent from `start_step` on."""
        if sizing.rank is None:
            return Unfit("torch_powersgd needs a rank; use policy 'fixed'")
        m, n = sizing.matrix.matrix
        columns = min(sizing.rank, m, n)
        if (m + n) * columns * self.min_compression_rate >= m * n:
            return Unfit(f"PyTorch compresses what becomes more than {self.min_compression_rate:g} times smaller")
        payloads = (Payload(AllReduceMean, m * columns), Payload(AllReduceMean, n * columns))
        return Fit(payloads, rank=columns, lossless=False, columns=columns)

    def work(self, sizing: Sizing, fit: Fit) -> Work:
        (m, n), k = sizing.matrix.matrix, fit.columns
        # Copies of the bucket and of its residual, and products that go against the layout of the gradient.
        return Work(passes=24, flops=6 * m * n * k, orthonormalise=orthonormalising(m, k), calls=30)

    def rounds(self, matrix: Matrix) -> Rounds:
        raise NotImplementedError("torch_powersgd takes whole buckets; compress.register carries it out")

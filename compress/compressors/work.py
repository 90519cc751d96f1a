"""How much arithmetic a method does for one matrix in one step, apart from what exchanging its payload takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Counts, which `compress.cost` turns into seconds by the rates of a machine.

    Flops are those of float32; what is computed in float64 counts twice.

    Below zero is what a method spares the backward pass.

    Attributes:
        passes: how often the whole gradient, or what is as large, is read or written; a copy counts for two. Products
            that wait for memory count as copies that take as long.
        flops: of products of a large matrix with a thin one (`factor_products`).
        flops_per_worker: those that all-gathers cause for every worker that takes part.
        torch_flops: of torch's own products, beyond the passes that they take.
        orthonormalise: of orthonormal bases, as `orthonormalising` counts.
        svd: entries of decomposed matrices times their smaller side, m·n·min(m, n).
        calls: operations on tensors, each of which takes time however small they are.
    """

    passes: float = 0.0
    flops: float = 0.0
    flops_per_worker: float = 0.0
    torch_flops: float = 0.0
    orthonormalise: float = 0.0
    svd: float = 0.0
    calls: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.passes + other.passes,
            self.flops + other.flops,
            self.flops_per_worker + other.flops_per_worker,
            self.torch_flops + other.torch_flops,
            self.orthonormalise + other.orthonormalise,
            self.svd + other.svd,
            self.calls + other.calls,
        )

    def __sub__(self, other: "Work") -> "Work":
        return Work(
            self.passes - other.passes,
            self.flops - other.flops,
            self.flops_per_worker - other.flops_per_worker,
            self.torch_flops - other.torch_flops,
            self.orthonormalise - other.orthonormalise,
            self.svd - other.svd,
            self.calls - other.calls,
        )


READ = Work(passes=1.6, calls=3)
"""A product M Qᵀ with a thin Q, beside its flops: it reads M."""

READ_COLUMNS = Work(passes=3.2, calls=3)
"""A product P M: it reads M against its layout."""

WRITE = Work(passes=3.3, calls=5)
"""A product Pᵀ Q of thin matrices, which is written over the gradient."""

SUBTRACT = Work(passes=4, calls=5)
"""M − Pᵀ Q, which is written where it is kept."""

_FEW_ROWS = 16
"""Rows below which torch's product DᵀA takes no less time."""

_NARROW = 48
"""Columns up to which a basis takes as long for its columns, one after another, as for its flops."""


def orthonormalising(m: int, k: int) -> int:
    """Flops of an orthonormal basis of k columns of m numbers: 4·m·k² where k is large."""
    return 4 * m * k * (k + _NARROW)


def backward_product(m: int, n: int, rows: int) -> Work:
    """What the backward pass takes for ΔᵀA: it writes m × n numbers."""
    return Work(passes=3, torch_flops=2 * m * n * max(rows, _FEW_ROWS))

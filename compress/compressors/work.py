"""How much arithmetic a method does for one matrix in one step, apart from what exchanging its payload takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Counts, which `compress.cost` turns into seconds by the rates of a machine.

    Flops are those of float32; what is computed in float64 counts twice.

    Attributes:
        passes: how often the whole gradient, or what is as large, is read or written. One of two that are read
            and written counts for two.
        flops: of products with thin matrices; below zero where a product of the backward pass is saved.
        flops_per_worker: those that all-gathers cause for every worker that takes part.
        orthonormalise: flops of orthonormal bases, 4·m·k² for k columns of m.
        svd: entries of decomposed matrices times their smaller side, m·n·min(m, n).
        calls: operations on tensors, each of which takes time however small they are.
    """

    passes: float = 0.0
    flops: float = 0.0
    flops_per_worker: float = 0.0
    orthonormalise: float = 0.0
    svd: float = 0.0
    calls: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.passes + other.passes,
            self.flops + other.flops,
            self.flops_per_worker + other.flops_per_worker,
            self.orthonormalise + other.orthonormalise,
            self.svd + other.svd,
            self.calls + other.calls,
        )

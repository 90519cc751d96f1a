"""Matrices of known rank drawn at random, computed in a type as gradients are, each beside an exacter shadow."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating]
EXACTER = {np.dtype("float32"): np.float64, np.dtype("float64"): np.longdouble}
TOO_NEAR = 1.25
"""Times the tolerance up to which a singular value may be counted or not, since decompositions round too."""


@dataclass(frozen=True)
class Known:
    """A matrix whose rank is known.

    Attributes:
        matrix: m × n, float32 or float64, computed in its type.
        rank: of what would have been computed without rounding.
        smallest: of the exact singular values that are not 0; 0 for a zero matrix.
        noise: spectral norm of what rounding added.
    """

    kind: str
    matrix: Tensor
    rank: int
    smallest: float
    noise: float

    def is_clear(self, tolerance: float) -> bool:
        """Whether every count at this tolerance must give the rank: nothing that counts or not is near it."""
        if self.rank == 0:
            return True
        return self.noise * TOO_NEAR < tolerance and self.smallest - self.noise > tolerance * TOO_NEAR

    def bounds(self, random: Random) -> dict[str, int | None]:
        """Bounds to measure it with."""
        most = max(self.matrix.shape)
        too_small = random.randrange(self.rank) if self.rank else 0
        return {"right": self.rank, "loose": random.randint(self.rank, most), "too small": too_small, "none": None}


def draw(random: Random, large: float = 0.15) -> Known:
    """A matrix of a rank from 0 to full, a condition to 1e5, entries around 1e-6 to 1e6, and sides to 200.

    Args:
        random: what it depends on alone.
        large: share of matrices with sides of 256 to 512, of which sketches are taken.
    """
    low, high = (256, 512) if random.random() < large else (1, 200)
    m, n = random.randint(low, high), random.randint(low, high)
    dtype = random.choice([np.dtype("float32"), np.dtype("float64")])
    full = min(m, n)
    rank = random.randint(1, full) if random.random() < 0.3 else min(full, round(full ** random.random()))
    kind = random.choices(["product", "mean", "zero"], [0.6, 0.35, 0.05])[0]
    generator = np.random.default_rng(random.getrandbits(32))
    spectrum = np.logspace(0, -random.uniform(0, 5), rank) * 10.0 ** random.choice([-6, -2, 0, 0, 0, 2, 6])
    left = (generator.standard_normal((m, rank)) * spectrum).astype(dtype)
    if kind == "zero":
        return Known(kind, torch.zeros(m, n, dtype=torch.from_numpy(left).dtype), 0, 0.0, 0.0)
    workers = 1 if kind == "product" else random.randint(2, 4)
    # Each worker has rows of adjoints in a space that all share, and rows of activations of its own.
    rows = rank if kind == "product" else random.randint(-(-rank // workers), rank + 8)
    mixed = generator.standard_normal((workers, rows, rank)).astype(dtype)
    inputs = generator.standard_normal((workers, rows, n)).astype(dtype)

    def compute(cast: Callable[[Array], Array]) -> Array:
        shared = cast(left)
        if kind == "product":
            return shared @ cast(inputs[0])
        parts = [(cast(mixed[i]) @ shared.T).T @ cast(inputs[i]) for i in range(workers)]
        return sum(parts[1:], parts[0]) / cast(np.asarray(workers))

    exact = compute(lambda array: array.astype(EXACTER[dtype]))
    found = compute(lambda array: array.astype(dtype))
    values = np.linalg.svd(exact.astype(np.float64), compute_uv=False)
    rounding = (found - exact).astype(np.float64)
    return Known(kind, torch.from_numpy(found), rank, float(values[rank - 1]), float(np.linalg.norm(rounding, 2)))

"""Measure a machine's rates, in about a second."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from compress.compressors.base import Matrix
from compress.compressors.dense import Dense
from compress.compressors.orthonormal import orthonormal
from compress.compressors.work import orthonormalising
from compress.cost.rates import Rates
from compress.exchange import Exchange
from compress.factor_products import times_rows
from compress.layers import ParameterInfo
from compress.plan import fit_dense
from compress.step import Step

SIDE = 2048
"""Of the matrices of large products."""

MATRICES = 8
"""So many take turns, 128 MiB in all, so that none is still in a cache."""

COLUMNS = 4, 64
"""Of thin matrices: what the more columns take longer is due to flops, not to memory."""

ROWS = 16, 64
"""Of inputs and adjoints whose product the backward pass takes; likewise."""

FACTOR = 2048, 32
DECOMPOSED = 128
SMALL = 64
REPEATS = 9

IN_A_STEP = 1.8
"""How many times as long things take in a step as at their fastest alone (`Rates.slowed`): caches hold what the
backward pass left, and workers of one machine wait for memory, and for each other. The median over the methods of
`benchmarks/cost_model.py`."""


def measure_rates(device: torch.device | str = "cpu") -> Rates:
    """Time what methods do on this machine, by the fastest of several times.

    To plan by them give all workers those of one: plans must be alike.

    Args:
        device: where gradients will be.
    """
    device = torch.device(device)
    stack = torch.ones(MATRICES, SIDE, SIDE, device=device)
    turns = cycle(stack)
    memory = 2 * stack[0].nbytes / _fastest(lambda: next(turns).copy_(next(turns)), device)
    few, many = (
        _fastest(partial(_product, turns, torch.randn(columns, SIDE, device=device)), device) for columns in COLUMNS
    )
    beyond = max(many - few, many / 4)  # lest noise make it nothing
    short, tall = (_fastest(partial(_backward, turns, torch.randn(rows, SIDE, device=device)), device) for rows in ROWS)
    m, k = FACTOR
    factor = torch.randn(1, k, m, device=device)
    square = torch.randn(DECOMPOSED, DECOMPOSED, device=device)
    small = torch.ones(SMALL, device=device)
    collective, matrix = _book_keeping(device)
    alone = Rates(
        memory=memory,
        products=2 * SIDE * SIDE * (COLUMNS[1] - COLUMNS[0]) / beyond,
        torch_products=2 * SIDE * SIDE * (ROWS[1] - ROWS[0]) / max(tall - short, tall / 4),
        orthonormalise=orthonormalising(m, k) / _fastest(lambda: orthonormal(factor), device),
        svd=DECOMPOSED**3 / _fastest(lambda: torch.linalg.svd(square, full_matrices=False), device),
        call=_fastest(lambda: [small.add(1.0) for _ in range(100)], device) / 100,
        matrix=matrix,
        collective=collective,
    )
    return alone.slowed(IN_A_STEP)


def _product(turns: Iterator[Tensor], Q: Tensor) -> Tensor:
    return times_rows(next(turns), Q)


def _backward(turns: Iterator[Tensor], rows: Tensor) -> Tensor:
    return torch.mm(rows.mT, rows, out=next(turns))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, the least of several: whatever else the machine does can only add to it."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


class _Alone(Exchange):
    """An exchange of one worker that has nobody to meet: what is left is book-keeping."""

    def __init__(self) -> None:
        self.group, self.world_size, self.rank = None, 1, 0
        self.bytes, self.wire_bytes, self.seconds = 0, 0.0, 0.0

    def _launch_reduce(self, buffer: Tensor) -> None:
        return None


def _book_keeping(device: torch.device) -> tuple[float, float]:
    """Seconds for a collective, and for each matrix in it."""

    def step(count: int) -> None:
        one = Step(_Alone())
        one.begin((matrix, Dense().rounds(matrix)) for matrix in _small_matrices(count, device))
        one.finish()

    few = _fastest(lambda: step(1), device)
    many = _fastest(lambda: step(SMALL + 1), device)
    matrix = max(many - few, 0.0) / SMALL
    return max(few - matrix, 0.0), matrix


def _small_matrices(count: int, device: torch.device) -> Iterator[Matrix]:
    for number in range(count):
        info = ParameterInfo(f"{number}", (4, 4), torch.float32)
        yield Matrix(info, {info.name: torch.ones(4, 4, device=device)}, fit_dense(info), step=0, seed=0)

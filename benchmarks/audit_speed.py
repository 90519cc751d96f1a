"""Claim: with a bound, the rank of a matrix costs a small part of its singular values, and is as sure.

Square matrices of known rank, products of two factors, measured with the rank as the bound; the same rank is counted
from `torch.linalg.svdvals` at the tolerance that was stated, and by `torch.linalg.matrix_rank`. Then matrices of full
rank with a bound that is wrong: they cost a sketch in vain and all singular values. "times" is how many times as long
the others take. All take turns in one process; times are medians of as many rounds as fit in --seconds, one at least.
With --processor they are of the processor instead of the clock, which other work on the machine sways less.

    python benchmarks/audit_speed.py
    python benchmarks/audit_speed.py --threads 1 --processor
    python benchmarks/audit_speed.py --sizes 512 2048 --types float32 --json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compress import RankMeasurement, measure_rank

TYPES = {"float32": torch.float32, "float64": torch.float64}
ROUNDS = 9


def random_matrix(size: int, rank: int | None, dtype: torch.dtype) -> Tensor:
    """Size × size, of a rank, or of full rank with independent entries."""
    generator = torch.Generator().manual_seed(size)
    if rank is None:
        return torch.randn(size, size, generator=generator, dtype=dtype)
    left, right = (torch.randn(size, rank, generator=generator, dtype=dtype) for _ in range(2))
    return left @ right.mT


def timed(work: Callable[[], Any], times: list[float], clock: Callable[[], float]) -> Any:
    started = clock()
    result = work()
    times.append(1e3 * (clock() - started))
    return result


def measure(
    size: int, kind: str, rank: int | None, bound: int, seconds: float, clock: Callable[[], float]
) -> dict[str, Any]:
    """Time and rank by all methods, of one matrix; rank None for full."""
    G = random_matrix(size, rank, TYPES[kind])
    times: dict[str, list[float]] = {"ours": [], "svdvals": [], "matrix_rank": []}
    started = time.monotonic()
    measure_rank(G, bound=bound if rank is not None else None)  # a first call finds its memory
    for _ in range(ROUNDS):
        found: RankMeasurement = timed(lambda: measure_rank(G, bound=bound), times["ours"], clock)
        values = timed(lambda: torch.linalg.svdvals(G), times["svdvals"], clock)
        if rank is not None:  # where it is short, once more, since one round may be all
            timed(lambda: measure_rank(G, bound=bound), times["ours"], clock)
        by_torch = timed(lambda: torch.linalg.matrix_rank(G), times["matrix_rank"], clock)
        if time.monotonic() - started > seconds:
            break
    medians = {name: statistics.median(each) for name, each in times.items()}
    ranks = (found.numerical, int((values > found.tolerance).sum()), int(by_torch))
    return {
        "size": size,
        "type": kind,
        "rank": size if rank is None else rank,
        "bound": bound,
        "found": found.numerical,
        "same": len(set(ranks)) == 1,
        "ours_ms": medians["ours"],
        "svdvals_ms": medians["svdvals"],
        "matrix_rank_ms": medians["matrix_rank"],
        "svdvals_times": medians["svdvals"] / medians["ours"],
        "matrix_rank_times": medians["matrix_rank"] / medians["ours"],
        "rounds": len(times["svdvals"]),
    }


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['size']:>5}  {row['type']:8}{row['rank']:>5}{row['bound']:>6}{row['found']:>6}  {row['same']!s:5}"
        f"{row['ours_ms']:>10.1f}{row['svdvals_ms']:>11.1f}{row['matrix_rank_ms']:>12.1f}"
        f"{row['svdvals_times']:>8.2f}{row['matrix_rank_times']:>8.2f}{row['rounds']:>7}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 2048, 4096])
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 16, 64, 256], help="with the rank as the bound")
    parser.add_argument("--wrong", nargs="*", type=int, default=[16, 64], help="bounds of matrices of full rank")
    parser.add_argument("--seconds", type=float, default=5.0, help="after which no new round begins, for each row")
    parser.add_argument("--threads", type=int, help="torch's by default")
    parser.add_argument("--processor", action="store_true", help="time of the processor, of all threads together")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor else time.perf_counter
    if not options.json:
        print(f"{'':37}{'milliseconds':>33}{'times':>16}")
        print(
            f"{'size':>5}  {'type':8}{'rank':>5}{'bound':>6}{'found':>6}  {'same':5}{'ours':>10}{'svdvals':>11}"
            f"{'matrix_rank':>12}{'svdvals':>8}{'m_rank':>8}{'rounds':>7}"
        )
    rows = []
    for size in options.sizes:
        for kind in options.types:
            cases = [(rank, rank) for rank in options.ranks] + [(None, bound) for bound in options.wrong]
            for rank, bound in cases:
                rows.append(measure(size, kind, rank, bound, options.seconds, clock))
                if not options.json:
                    print(line(rows[-1]), flush=True)
    if options.json:
        print(
            json.dumps(
                {
                    "benchmark": "audit_speed",
                    "threads": torch.get_num_threads(),
                    "processor": options.processor,
                    "rows": rows,
                }
            )
        )


if __name__ == "__main__":
    main()

"""Claim: a measured rank is the true one wherever the spectrum's gap stands above the stated tolerance.

Random matrices of known rank (tests/support/known_ranks.py), products and means over workers computed in float32 or
float64, each measured with the right bound, a loose one, one that is too small, and none. A matrix is "clear" where
its smallest singular value, known from an exacter shadow, is above the tolerance, and what rounding added below it;
only there is a rank right or wrong. "sketched" are those that needed no full decomposition. Wrong ones and errors are
told on stderr, and the exit code is then 1. With --json one JSON object.

    python benchmarks/rank_accuracy.py --matrices 10000
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch

from compress import measure_rank

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from known_ranks import Known, draw

BOUNDS = ("right", "loose", "too small", "none")
COUNTS = ("matrices", "clear", "right", "wrong", "errors", "sketched")


def tell(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def count(row: dict[str, int], known: Known, bound: int | None) -> None:
    row["matrices"] += 1
    try:
        found = measure_rank(known.matrix, bound=bound)
    except Exception as error:  # noqa: BLE001 - counted, told, and the run fails at the end
        row["errors"] += 1
        tell("ERROR", type(error).__name__, str(error)[:200], known.matrix.shape, known.rank, bound)
        return
    row["sketched"] += found.paper is None
    if known.is_clear(found.tolerance):
        row["clear"] += 1
        row["right"] += found.numerical == known.rank
        row["wrong"] += found.numerical != known.rank
        if found.numerical != known.rank:
            tell("WRONG", known.kind, tuple(known.matrix.shape), known.matrix.dtype, known.rank, bound, found.numerical)


def run(matrices: int, seed: int) -> dict[str, dict[str, int]]:
    rows = {name: dict.fromkeys(COUNTS, 0) for name in BOUNDS}
    started = time.monotonic()
    for i in range(matrices):
        drawn = random.Random(f"{seed} {i}")
        known = draw(drawn)
        for name, bound in known.bounds(drawn).items():
            count(rows[name], known, bound)
        if (i + 1) % 1000 == 0:
            tell(f"{i + 1} of {matrices} matrices, {time.monotonic() - started:.0f} s")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.matrices, options.seed)
    if options.json:
        found = [{"bound": name} | row for name, row in rows.items()]
        print(json.dumps({"benchmark": "rank_accuracy", "seed": options.seed, "rows": found}))
    else:
        print(f"{'bound':10}" + "".join(f"{name:>10}" for name in COUNTS))
        for name, row in rows.items():
            print(f"{name:10}" + "".join(f"{row[key]:>10}" for key in COUNTS))
    sys.exit(any(row["wrong"] or row["errors"] for row in rows.values()))


if __name__ == "__main__":
    main()

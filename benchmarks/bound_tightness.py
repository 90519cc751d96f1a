"""Claim: no measured rank exceeds its bound, and for linear networks the bound is nearly always reached.

Networks drawn at random (tests/support/architectures.py), each bounded and its gradients' ranks measured in
float64. Prints for each kind: networks, weight matrices, violations (measured above the bound), and of the matrices
of linear networks whose measured rank is below min(m, n) the share whose bound equals it. Progress, violations
and, with --loose, what is not tight go to stderr. With --json one JSON object.

    python benchmarks/bound_tightness.py --networks 200
    python benchmarks/bound_tightness.py --networks 2000 --seed 1 --json
"""

import argparse
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from architectures import KINDS, Network, draw
from examined import Matrix, examine, telling

COUNTS = ("networks", "matrices", "violations", "unclear", "errors", "telling", "tight")


def tell(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def count(row: dict[str, int], network: Network, found: list[Matrix], loose: bool) -> None:
    row["networks"] += 1
    row["matrices"] += len(found)
    for matrix in found:
        row["violations"] += matrix.violated
        row["unclear"] += matrix.unclear
        if matrix.violated or matrix.unclear:
            tell("VIOLATION" if matrix.violated else "unclear", matrix, network)
        if network.linear and telling(matrix):
            row["telling"] += 1
            row["tight"] += matrix.measured == matrix.bound
            if loose and matrix.measured < matrix.bound:
                tell("loose", matrix, network)


def run(networks: int, seed: int, kinds: list[str], loose: bool) -> dict[str, dict[str, int]]:
    rows = {kind: dict.fromkeys(COUNTS, 0) for kind in kinds}
    started = time.monotonic()
    for i in range(networks):
        kind = kinds[i % len(kinds)]
        network = draw(random.Random(f"{seed} {i}").choice, kind)
        try:
            count(rows[kind], network, examine(network, seed=i), loose)
        except Exception as error:  # noqa: BLE001 - counted, told, and the run fails at the end
            rows[kind]["errors"] += 1
            tell("ERROR", type(error).__name__, str(error)[:200], network)
        if (i + 1) % 100 == 0:
            tell(f"{i + 1} of {networks} networks, {time.monotonic() - started:.0f} s")
    return rows


def share(row: dict[str, int]) -> float | None:
    return row["tight"] / row["telling"] if row["telling"] else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=200, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--loose", action="store_true", help="tell what is not tight, on stderr")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    started = time.monotonic()
    rows = run(options.networks, options.seed, options.kinds, options.loose)
    rows["overall"] = {name: sum(row[name] for row in rows.values()) for name in COUNTS}
    failed = rows["overall"]["violations"] + rows["overall"]["errors"]
    if options.json:
        found: list[dict[str, Any]] = [{"kind": kind, **row, "share": share(row)} for kind, row in rows.items()]
        facts = {"benchmark": "bound_tightness", "seed": options.seed, "seconds": time.monotonic() - started}
        print(json.dumps({**facts, "rows": found}))
    else:
        print(f"{'kind':26}" + "".join(f"{name:>12}" for name in COUNTS) + f"{'share':>9}")
        for kind, row in rows.items():
            equal = share(row)
            cells = "".join(f"{row[name]:>12}" for name in COUNTS)
            print(f"{kind:26}{cells}{'–' if equal is None else f'{equal:.1%}':>9}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

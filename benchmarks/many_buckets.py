"""Claim: PowerSGD runs on gloo with many DDP buckets, where PyTorch's own hook hangs.

Two processes, four linear layers of 2048 × 2048, DDP's default buckets of 25 MiB, one thread each.
Prints a row for each method: steps done, median step time. With --json one JSON object.

    python benchmarks/many_buckets.py
    python benchmarks/many_buckets.py --peer    # PyTorch's hook too, given up after --patience seconds
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from processes import StuckError, run
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import compress

METHODS: dict[str, dict[str, Any] | None] = {
    "DDP alone": {},
    "dense": {"compressor": "dense"},
    "powersgd, rank 4": {"compressor": "powersgd", "policy": {"kind": "fixed", "rank": 4}},
    "powersgd, bound 16": {"compressor": "powersgd", "policy": "bound"},
    "dad": {"compressor": "dad"},
}
PEER = "torch's powerSGD_hook, rank 4"


def network(width: int) -> nn.Sequential:
    """Four linear layers; rows of the batch (8 a worker) bound their gradients by 16."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))


def attach(name: str, ddp: DistributedDataParallel, bounds: compress.Bounds) -> None:
    if name == PEER:
        options = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        ddp.register_comm_hook(options, powerSGD_hook.powerSGD_hook)
    elif METHODS[name]:
        compress.register(ddp, bounds=bounds, **METHODS[name])


def train(rank: int, name: str, width: int, steps: int) -> tuple[int, float]:
    """Steps done, and their median in milliseconds."""
    torch.manual_seed(0)
    model = network(width)
    x = torch.randn(8, width, generator=torch.Generator().manual_seed(rank))

    def loss(output: torch.Tensor) -> torch.Tensor:
        return output.square().mean()

    bounds = compress.rank_bounds(model, (x,), loss=loss)
    ddp = DistributedDataParallel(model)
    attach(name, ddp, bounds)
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        ddp.zero_grad()
        loss(ddp(x)).backward()
        times.append(time.perf_counter() - started)
    return len(times), 1000 * statistics.median(times[3:])


def measure(name: str, width: int, steps: int, patience_s: float) -> dict[str, Any]:
    """One method's row."""
    try:
        done, step_ms = run(train, name, width, steps, patience_s=patience_s)
    except StuckError:
        return {"method": name, "steps": 0, "step_ms": None, "outcome": "stuck"}
    return {"method": name, "steps": done, "step_ms": step_ms, "outcome": "ended"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--patience", type=float, default=180, help="seconds before a method counts as stuck")
    parser.add_argument("--peer", action="store_true", help="PyTorch's own hook too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = [*METHODS, *([PEER] if options.peer else [])]
    rows = [measure(name, options.width, options.steps, options.patience) for name in names]
    if options.json:
        print(json.dumps({"benchmark": "many_buckets", "width": options.width, "rows": rows}))
        return
    print(f"{'method':32} {'steps':>6} {'ms/step':>9}  outcome")
    for row in rows:
        step = f"{row['step_ms']:9.1f}" if row["step_ms"] is not None else f"{'–':>9}"
        print(f"{row['method']:32} {row['steps']:>6} {step}  {row['outcome']}")


if __name__ == "__main__":
    main()

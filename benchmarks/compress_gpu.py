"""Claim: on a GPU the engine costs little beyond its matrix products, and never makes the host wait.

One process with one GPU, NCCL, world size 1: what is timed is compressing and decompressing alone. The sets are those
of compress_step.py. "products" is the time of the bare matrix products of the method. Before timing, one step of each
method runs with torch's detection of host synchronisation on, which makes any of them an error.

    python benchmarks/compress_gpu.py --sets linear resnet18 bert
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import compress_step as steps
import torch
import torch.distributed as dist

from compress.factor_products import expand, subtract, times_columns, times_rows

METHODS = [method for method in steps.METHODS if method != "compute"]


def milliseconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of `work`, on the GPU's own clock."""
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def products(gradients: list[torch.Tensor], columns: int, feedback: bool) -> Callable[[], None]:
    """The matrix products of PowerSGD on so many columns, and nothing else."""
    factors = [(torch.randn(columns, M.shape[0]).to(M), torch.randn(columns, M.shape[1]).to(M)) for M in gradients]

    def work() -> None:
        for M, (P, Q) in zip(gradients, factors, strict=True):
            times_rows(M, Q)
            own = times_columns(P, M)
            if feedback:
                subtract(M, P, own, out=M)
            expand(P, Q, out=M)

    return work


def measure(kind: str, rank: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for method in METHODS:
        if method == steps.SUBSPACE and kind != "linear":
            continue
        task = steps.make_task(kind, rank, 0, workers=1, device=device)
        model = steps.set_up(method, task, rank)

        def step(model: torch.nn.Module = model, task: steps.Task = task) -> None:
            model.zero_grad()
            task.loss(model).backward()

        for _ in range(steps.WARM_UP):
            step()
        torch.cuda.synchronize(device)
        waits = False
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            waits = True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        matrices = [p for p in task.network.parameters() if p.dim() > 1 and min(p.shape[0], p[0].numel()) > 2 * rank]
        gradients = [torch.randn(p.shape[0], p[0].numel(), device=device) for p in matrices]
        bare = {steps.FEEDBACK: (rank, True), steps.LOSSLESS: (rank + 4, False)}.get(method)
        rows.append(
            {
                "set": kind,
                "rank": rank,
                "method": method,
                "step_ms": milliseconds(step, device, rounds),
                "products_ms": milliseconds(products(gradients, *bare), device, rounds) if bare else None,
                "host_waits": waits,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["linear"], choices=["linear", "resnet18", "bert"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; compress_step.py measures on CPUs")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", store=dist.FileStore(f"{folder}/store", 1), rank=0, world_size=1)
        rows = [
            row
            for kind in options.sets
            for rank in options.ranks
            for row in measure(kind, rank, options.rounds, device)
        ]
        dist.destroy_process_group()
    if options.json:
        print(json.dumps({"benchmark": "compress_gpu", "device": torch.cuda.get_device_name(device), "rows": rows}))
        return
    print(torch.cuda.get_device_name(device))
    print(f"{'set':10}{'rank':>5}  {'method':26}{'step ms':>9}{'products':>10}  host waits")
    for row in rows:
        bare = f"{row['products_ms']:10.2f}" if row["products_ms"] is not None else f"{'–':>10}"
        print(f"{row['set']:10}{row['rank']:>5}  {row['method']:26}{row['step_ms']:9.2f}{bare}  {row['host_waits']}")


if __name__ == "__main__":
    main()

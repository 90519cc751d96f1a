"""Claim: compression needs little memory beyond the gradients, and none between steps where it is lossless.

Two processes, gloo, one thread each, the linear set of compress_step.py: four gradients of 2048² (64 MiB). Each
method runs in fresh processes. "beyond" is the peak of resident memory beyond that of the network trained without DDP
("compute"), whose weights, gradients and activations all have; "kept" is what the method keeps from step to step.

    python benchmarks/compress_memory.py --json
"""

import argparse
import json
import tempfile
from datetime import timedelta
from multiprocessing.queues import Queue
from typing import Any

import compress_step as steps
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from compress import CompressionState
from launch.memory import peak_memory_mb, reset_peak_memory


def kept_mb(state: Any) -> float:
    """What a hook's state keeps from step to step, in MiB."""
    if isinstance(state, CompressionState):
        tensors = [tensor for memory in state.state_dict()["memories"].values() for tensor in memory.values()]
    else:
        kept = [state.error_dict, state.p_memory_dict, state.q_memory_dict] if state is not None else []
        tensors = [tensor for memory in kept for tensor in memory.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def worker(rank: int, method: str, low_rank: int, count: int, path: str, out: "Queue[Any]") -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(path, steps.WORKERS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=steps.WORKERS, timeout=timedelta(minutes=5))
    task = steps.make_task("linear", low_rank, rank)
    states: list[Any] = []
    model = steps.set_up(method, task, low_rank, states)

    def step(model: nn.Module) -> None:
        model.zero_grad()
        task.loss(model).backward()

    for _ in range(3):
        step(model)
    device = torch.device("cpu")
    reset_peak_memory(device)
    for _ in range(count):
        step(model)
    peak = peak_memory_mb(device)
    if rank == 0:
        out.put((peak, kept_mb(states[0] if states else None)))
    dist.barrier()
    dist.destroy_process_group()


def measure(method: str, rank: int, count: int) -> dict[str, Any]:
    context = mp.get_context("spawn")
    out = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (method, rank, count, f"{folder}/store", out)
        processes = [context.Process(target=worker, args=(index, *arguments)) for index in range(steps.WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit(f"{method}, rank {rank}: a process failed")
        peak, kept = out.get(timeout=10)
    return {"rank": rank, "method": method, "peak_mb": peak, "kept_mb": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 64])
    parser.add_argument("--methods", nargs="+", default=steps.METHODS, choices=steps.METHODS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for rank in options.ranks:
        alone = measure("compute", rank, options.steps)
        for method in options.methods:
            row = alone if method == "compute" else measure(method, rank, options.steps)
            rows.append(row | {"beyond_mb": row["peak_mb"] - alone["peak_mb"]})
    if options.json:
        print(json.dumps({"benchmark": "compress_memory", "rows": rows}))
        return
    print(f"{'rank':>5}  {'method':26}{'peak MiB':>10}{'beyond MiB':>12}{'kept MiB':>10}")
    for row in rows:
        print(
            f"{row['rank']:>5}  {row['method']:26}{row['peak_mb']:10.0f}{row['beyond_mb']:12.0f}{row['kept_mb']:10.1f}"
        )


if __name__ == "__main__":
    main()

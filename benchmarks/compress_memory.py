"""Claim: compression needs little memory beyond the gradients, and none between steps where it is lossless.

Two processes, gloo, one thread each, the linear set of compress_step.py: four gradients of 2048² (64 MiB). Each
method runs in fresh processes. "beyond" is the peak of resident memory beyond that of the network trained without DDP
("compute"), whose weights, gradients and activations all have; "kept" is what the method keeps from step to step.

    python benchmarks/compress_memory.py --json
"""

import argparse
import json
from typing import Any

import compress_step as steps
import processes
import torch
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


def train(rank: int, method: str, low_rank: int, count: int) -> tuple[float, float]:
    """Peak of resident memory while training, and what the method keeps, in MiB."""
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
    return peak_memory_mb(device), kept_mb(states[0] if states else None)


def measure(method: str, rank: int, count: int) -> dict[str, Any]:
    peak, kept = processes.run(train, method, rank, count)
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

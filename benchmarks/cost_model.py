"""Claim: what a step costs beyond computing is predicted within 30 per cent, for every method.

Two processes on one machine's loopback, gloo, one thread each. First the machine's rates are measured
(`compress.measure_rates`, in both processes at once) and the loopback's bandwidth and latency, by least squares over
all-reduces of many sizes. Then every method trains a network of its own in both processes; the methods take turns, one
step each, so that noise meets all alike.

"over" is a method's step beyond one that computes only and then waits for the other process, the median of the
differences within rounds. "predicted" is `compress.predict`. Networks:

    linear        2048 → 2048 → 2048 → 16 → 2048 → 2048 → 2048, linear, 64 rows
    mlp           1024 → 1536 → 1536 → 1536 → 32, with ReLU, 8 rows
    convolution   kernels of 3 × 3 from 3 to 64, 128, 256 and 256 channels, 8 images of 16 × 16
    transformer   two encoder layers 384 wide, feedforward 1536, 4 sequences of 16

    python benchmarks/cost_model.py
    python benchmarks/cost_model.py --networks linear mlp --rounds 60 --json
"""

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from processes import WORKERS, run
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.base import AllReduceMean
from compress.cost import Network, Rates, measure_rates, predict

WARM_UP = 5
GOAL = 0.3
SIZES = [2**power for power in range(8, 26, 2)]
"""Bytes of the all-reduces that the loopback is measured by."""

BUSY = 512
"""Side of a matrix whose square takes a few milliseconds."""

METHODS: dict[str, tuple[str, Any]] = {
    "dense": ("dense", "none"),
    "powersgd, rank 4": ("powersgd", {"kind": "fixed", "rank": 4}),
    "powersgd, bound": ("powersgd", "bound"),
    "subspace": ("subspace", "none"),
    "dad": ("dad", "none"),
    "rank_dad": ("rank_dad", "bound"),
    "auto": ("auto", "none"),
}


class Transformer(nn.Module):
    """Encoder layers, and the mean over positions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(width, 4, hidden, dropout=0.0, batch_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, 32)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.layers(x).mean(dim=1))
        return output


def make(kind: str) -> tuple[nn.Module, Tensor]:
    """A network, and inputs of one worker."""
    torch.manual_seed(0)
    if kind == "linear":
        widths = [2048, 2048, 2048, 16, 2048, 2048, 2048]
        return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))), torch.randn(64, 2048)
    if kind == "mlp":
        widths = [1024, 1536, 1536, 1536]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(1536, 32)), torch.randn(8, 1024)
    if kind == "convolution":
        channels = [3, 64, 128, 256, 256]
        layers = [
            layer for a, b in pairwise(channels) for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())
        ]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 32)), torch.randn(8, 3, 16, 16)
    return Transformer(384, 1536), torch.randn(4, 16, 384)


def measure_network() -> tuple[Network, float]:
    """Bandwidth and latency of the links between the processes, and how far the fit is off, relative, in the median.

    The fit is of seconds = messages · latency + 8 · wire bytes / bandwidth, each size's residual relative to it. As in
    a step, processes compute before they meet, so that one waits for the other and threads must be woken.
    """
    rows = []
    busy = torch.randn(BUSY, BUSY)
    for size in SIZES:
        buffer, times = torch.ones(size // 4), []
        for _ in range(22):
            dist.barrier()
            busy @ busy
            started = time.perf_counter()
            dist.all_reduce(buffer)
            times.append(time.perf_counter() - started)
        rows.append((2 * (WORKERS - 1), 8 * 2 * (WORKERS - 1) / WORKERS * size, statistics.median(times[2:])))
    table = np.array(rows)
    weighted = table[:, :2] / table[:, 2:]
    (latency, per_bit), *_ = np.linalg.lstsq(weighted, np.ones(len(table)), rcond=None)
    off = float(np.median(np.abs(weighted @ [latency, per_bit] - 1)))
    return Network(bandwidth=1 / max(per_bit, 1e-15), latency=max(latency, 0.0)), off


def calibrated() -> tuple[Network, Rates, float]:
    """Rates and links as the first process measured them, alike in both."""
    dist.barrier()
    rates = measure_rates()  # in both processes at once, as in a step
    network, off = measure_network()
    found = [(network, rates, off)]
    dist.broadcast_object_list(found, 0)
    return found[0]


def worker(rank: int, kinds: list[str], rounds: int, bounds: dict[str, compress.Bounds]) -> list[dict[str, Any]]:
    """Calibrate and compare, for each network anew: other guests of the machine come and go."""
    warnings.simplefilter("ignore")
    found = []
    for kind in kinds:
        network, rates, off = calibrated()
        rows = compare(kind, rounds, bounds[kind], network, rates)
        found.append({"links": network.model_dump(), "rates": asdict(rates), "fit_off": off, "rows": rows})
    return found


def compare(kind: str, rounds: int, bounds: compress.Bounds, network: Network, rates: Rates) -> list[dict[str, Any]]:
    """Predicted against measured, for each method that compresses something here."""
    alone, x = make(kind)
    plans = {}
    for name, (compressor, policy) in METHODS.items():
        plan = compress.make_plan(alone, compressor, policy, bounds=bounds, world_size=WORKERS)
        compressed = sum(assignment.method != "dense" for assignment in plan.matrices)
        if compressed or name == "dense":
            plans[name] = plan, compressed
    models: dict[str, nn.Module] = {"alone": alone}
    for name, (plan, _) in plans.items():
        ddp = DistributedDataParallel(make(kind)[0], gradient_as_bucket_view=True, broadcast_buffers=False)
        compress.register(ddp, plan)
        models[name] = ddp
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + WARM_UP):
        for name, model in models.items():
            model.zero_grad()
            dist.barrier()
            started = time.perf_counter()
            model(x).square().mean().backward()
            if name == "alone":
                dist.all_reduce(torch.zeros(1))  # who is done first waits for the other, whatever is sent
            times[name].append(time.perf_counter() - started)
    base = np.array(times["alone"][WARM_UP:]) - network.waiting(AllReduceMean, WORKERS)
    rows = []
    for name, (plan, compressed) in plans.items():
        cost = predict(plan, network, rates)
        over = float(np.median(np.array(times[name][WARM_UP:]) - base))
        rows.append(
            {
                "network": kind,
                "method": name,
                "compressed": compressed,
                "bytes": plan.bytes,
                "step_ms": 1000 * statistics.median(times[name][WARM_UP:]),
                "over_ms": 1000 * over,
                "predicted_ms": 1000 * cost.seconds,
                "compute_ms": 1000 * cost.compute,
                "communication_ms": 1000 * cost.communication,
                "ratio": cost.seconds / over if over > 0 else None,
            }
        )
    return rows


def bounds_of(kind: str) -> compress.Bounds:
    """Bounds of a network for so many workers."""
    model, x = make(kind)
    return compress.rank_bounds(model, (x,), loss=lambda output: output.square().mean(), world_size=WORKERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ["linear", "mlp", "convolution", "transformer"]
    parser.add_argument("--networks", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, while it traces
    bounds = {kind: bounds_of(kind) for kind in options.networks}
    found = run(worker, options.networks, options.rounds, bounds)
    if options.json:
        print(json.dumps({"benchmark": "cost_model", "networks": found}))
        return
    for one in found:
        show(one)


def show(found: dict[str, Any]) -> None:
    """Print one network's rates and rows."""
    links, rates = found["links"], found["rates"]
    print(
        f"loopback {links['bandwidth'] / 1e9:.1f} Gbit/s, {1e6 * links['latency']:.0f} µs "
        f"(fit off by {found['fit_off']:.0%}); memory {rates['memory'] / 1e9:.1f} GB/s, products "
        f"{rates['products'] / 1e9:.0f} Gflop/s, bases {rates['orthonormalise'] / 1e9:.1f} Gflop/s, "
        f"call {1e6 * rates['call']:.1f} µs"
    )
    print(
        f"{'network':13}{'method':18}{'matrices':>9}{'KiB':>9}{'step ms':>9}{'over ms':>9}{'predicted':>10}{'ratio':>7}"
    )
    for row in found["rows"]:
        ratio = row["ratio"]
        told = "–" if ratio is None else f"{ratio:.2f}"
        mark = "" if ratio is not None and 1 / (1 + GOAL) <= ratio <= 1 + GOAL else "  beyond 30 %"
        print(
            f"{row['network']:13}{row['method']:18}{row['compressed']:>9}{row['bytes'] / 1024:9.0f}"
            f"{row['step_ms']:9.2f}{row['over_ms']:9.2f}{row['predicted_ms']:10.2f}{told:>7}{mark}"
        )
    print()


if __name__ == "__main__":
    main()

"""Claim: compression costs a fraction of PyTorch's PowerSGD hook, and at low ranks less than dense even on loopback.

Two processes on one machine, gloo, one thread each. Every method has a network of its own in both processes, and
the methods take turns, one step each, so that noise meets all alike; times are medians over the rounds. Sets:

    linear     2048 → 2048 → 2048 → rank → 2048 → 2048 → 2048, linear: four gradients of 2048², of that rank
    resnet18   gradients of the shapes of ResNet-18, of that rank at most, handed to DDP as they are
    bert       likewise, of BERT-base

"compute" is the step without DDP. "over" is the time beyond it, "share" that of PyTorch's hook, which has one bucket
(with more it hangs on gloo). "floor" is the arithmetic of a method alone, timed in the same processes.

    python benchmarks/compress_step.py                      # linear, ranks 4, 16, 64
    python benchmarks/compress_step.py --sets linear resnet18 bert --json
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import processes
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.orthonormal import orthonormal
from compress.factor_products import expand, subtract, times_columns, times_rows
from compress.matrix import matrix_shape

WIDTH, ROWS = 2048, 64
CPU = torch.device("cpu")
PEER = "torch powerSGD_hook"
FEEDBACK, LOSSLESS, SUBSPACE = "powersgd, error feedback", "powersgd, lossless", "subspace"
METHODS = ("compute", "DDP alone", "dense", PEER, FEEDBACK, LOSSLESS, SUBSPACE)
WARM_UP = 5


class Given(torch.autograd.Function):
    """A loss whose gradient by a parameter is given."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return parameter.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


class Shapes(nn.Module):
    """Parameters of given shapes; their gradients are given matrices."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._given = given
        for name, gradient in given.items():
            self.register_parameter(name, nn.Parameter(torch.zeros_like(gradient)))

    def forward(self) -> Tensor:
        losses = [Given.apply(parameter, self._given[name]) for name, parameter in self.named_parameters()]
        return torch.stack(losses).sum()


@cache
def given_gradients(kind: str, rank: int, worker: int, device: torch.device) -> Mapping[str, Tensor]:
    """Gradients of the shapes of a network, of a given rank at most; their mean over workers too."""
    generator, shared = torch.Generator().manual_seed(worker + 1), torch.Generator().manual_seed(0)
    given = {}
    for name, shape in shapes_of(kind).items():
        m, n = matrix_shape(shape if len(shape) > 1 else (1, *shape))
        r = min(rank, m, n)
        left = torch.randn(m, r, generator=shared)  # one space of columns for all workers
        given[name.replace(".", "_")] = (left @ torch.randn(r, n, generator=generator)).view(shape).to(device)
    return given


@dataclass(frozen=True)
class Task:
    """A network, and its loss of one step."""

    network: nn.Module
    inputs: tuple[Tensor, ...]
    target: Tensor
    bounds: compress.Bounds

    def loss(self, model: nn.Module) -> Tensor:
        output: Tensor = model(*self.inputs)
        return nn.functional.mse_loss(output, self.target)


def make_task(kind: str, rank: int, worker: int, workers: int = processes.WORKERS, device: torch.device = CPU) -> Task:
    """A task of one worker of so many; weights are alike on all."""
    torch.manual_seed(0)
    if kind == "linear":
        widths = [WIDTH, WIDTH, WIDTH, rank, WIDTH, WIDTH, WIDTH]
        network: nn.Module = nn.Sequential(
            *(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:], strict=False))
        )
        x, y = torch.randn(2, ROWS, WIDTH, generator=torch.Generator().manual_seed(worker))
        bounds = compress.rank_bounds(network, (x,), loss=nn.functional.mse_loss, targets=(y,), world_size=workers)
        return Task(network.to(device), (x.to(device),), y.to(device), bounds)
    network = Shapes(given_gradients(kind, rank, worker, device))
    entries = {}
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            m, n = matrix_shape(parameter.shape)
            bound = min(rank, m, n)
            entries[name] = compress.RankBound(bound, (m, n), "the gradients were made so", bound)
    return Task(network, (), torch.zeros((), device=device), compress.Bounds(entries, (), workers, 1, True))


def shapes_of(kind: str) -> dict[str, torch.Size]:
    """Shapes of all parameters of a network, by name."""
    with torch.device("meta"):
        if kind == "bert":
            from transformers import BertConfig, BertModel

            network: nn.Module = BertModel(BertConfig())
        else:
            from models import MODELS, Signature

            network = MODELS["resnet18"](kind="resnet18").build(Signature("images", (3, 64, 64), 1000))  # type: ignore[call-arg]
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def set_up(method: str, task: Task, rank: int, states: list[Any] | None = None) -> nn.Module:
    """The network as the method trains it; the state of its hook is appended to `states`."""
    states = [] if states is None else states
    if method == "compute":
        return task.network
    bucket_cap_mb = 4096 if method == PEER else 25
    ddp = DistributedDataParallel(
        task.network,
        gradient_as_bucket_view=True,
        bucket_cap_mb=bucket_cap_mb,
        broadcast_buffers=False,
        init_sync=False,
    )
    fixed = {"kind": "fixed", "rank": rank}
    if method == PEER:
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=2)
        ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        states.append(state)
    elif method == "dense":
        states.append(compress.register(ddp, compressor="dense"))
    elif method == FEEDBACK:
        states.append(compress.register(ddp, compressor="powersgd", policy=fixed))
    elif method == LOSSLESS:
        states.append(compress.register(ddp, compressor="powersgd", policy="bound", bounds=task.bounds))
    elif method == SUBSPACE:
        states.append(compress.register(ddp, compressor="subspace", bounds=task.bounds))
    return ddp


def parts(task: Task, rank: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the bare arithmetic over all matrices that a method compresses, by method."""
    matrices = [p for p in task.network.parameters() if p.dim() > 1 and min(p.shape[0], p[0].numel()) > 2 * rank]
    gradients = [torch.randn(p.shape[0], p[0].numel()) for p in matrices]
    residuals = [torch.randn_like(gradient) for gradient in gradients]

    def once(columns: int, feedback: bool) -> None:
        for M, residual in zip(gradients, residuals, strict=True):
            if feedback:
                M.add_(residual)
            P = orthonormal(times_rows(M, torch.randn(columns, M.shape[1]))[None])[0]
            Q = times_columns(P, M)
            if feedback:
                subtract(M, P, Q, out=residual)
            expand(P, Q, out=M)

    def project() -> None:
        for M in gradients:
            B = torch.randn(rank, M.shape[0])
            expand(B, times_columns(B, M), out=M)

    def median_ms(work: Callable[[], None]) -> float:
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times)

    return {
        FEEDBACK: median_ms(lambda: once(rank, feedback=True)),
        LOSSLESS: median_ms(lambda: once(rank + 4, feedback=False)),
        SUBSPACE: median_ms(project),
    }


def take_turns(rank: int, kind: str, low_rank: int, methods: list[str], rounds: int) -> Any:
    """Medians of the methods' steps, and the floors, in milliseconds."""
    warnings.simplefilter("ignore", FutureWarning)  # torch's own, while it traces
    tasks = {method: make_task(kind, low_rank, rank) for method in methods}
    models = {method: set_up(method, task, low_rank) for method, task in tasks.items()}
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds + WARM_UP):
        for method in methods:
            models[method].zero_grad()
            dist.barrier()
            started = time.perf_counter()
            tasks[method].loss(models[method]).backward()
            times[method].append(1000 * (time.perf_counter() - started))
    medians = {method: statistics.median(values[WARM_UP:]) for method, values in times.items()}
    dist.barrier()
    return medians, parts(tasks["compute"], low_rank, rounds=max(5, rounds // 4))


def measure(kind: str, rank: int, methods: list[str], rounds: int) -> list[dict[str, Any]]:
    """One run of all methods side by side."""
    medians, floor = processes.run(take_turns, kind, rank, methods, rounds)
    over = {method: medians[method] - medians["compute"] for method in methods}
    return [
        {
            "set": kind,
            "rank": rank,
            "method": method,
            "step_ms": medians[method],
            "over_ms": over[method],
            "share": over[method] / over[PEER] if PEER in methods else None,
            "floor_ms": floor.get(method),
        }
        for method in methods
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["linear"], choices=["linear", "resnet18", "bert"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if not options.json:
        print(f"{'set':10}{'rank':>5}  {'method':26}{'step ms':>9}{'over ms':>9}{'share':>7}{'floor ms':>10}")
    for kind in options.sets:
        methods = [method for method in options.methods if method != SUBSPACE or kind == "linear"]
        for rank in options.ranks:
            new = measure(kind, rank, methods, options.rounds)
            rows += new
            for row in [] if options.json else new:
                share = f"{row['share']:7.2f}" if row["share"] is not None else f"{'–':>7}"
                floor = f"{row['floor_ms']:10.1f}" if row["floor_ms"] is not None else f"{'–':>10}"
                print(
                    f"{row['set']:10}{row['rank']:>5}  {row['method']:26}{row['step_ms']:9.1f}{row['over_ms']:9.1f}"
                    f"{share}{floor}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"benchmark": "compress_step", "rows": rows}))


if __name__ == "__main__":
    main()

"""How error feedback's residuals go on over many steps: gradrank's beside those of PyTorch's hook.

    python benchmarks/residuals.py [--steps 2000] [--json] [--figure docs/images/residuals.png]

The gradient is stationary: weights stay as they are, and each worker draws new rows in each step. Whoever keeps its
own remainder keeps a bounded one; gradient minus the *global* approximation, as PyTorch's hook keeps it, grows like √t.
PyTorch's hook gets one bucket, since it hangs on gloo with more.
"""

import argparse
import json

import processes
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import compress

WIDTH, RANK, ROWS = 64, 2, 32
OURS, PEER = "gradrank, powersgd", "torch, powerSGD_hook"


def residual_norms(rank: int, name: str, steps: int) -> list[float]:
    """The norm of this worker's residual after each step; a process group is set up."""
    torch.manual_seed(0)
    ddp = DistributedDataParallel(nn.Linear(WIDTH, WIDTH, bias=False), bucket_cap_mb=1000)
    if name == OURS:
        ours = compress.register(ddp, compressor="powersgd", policy={"kind": "fixed", "rank": RANK})
    else:
        peers = powerSGD_hook.PowerSGDState(
            dist.group.WORLD, matrix_approximation_rank=RANK, start_powerSGD_iter=2, orthogonalization_epsilon=1e-8
        )
        ddp.register_comm_hook(peers, powerSGD_hook.powerSGD_hook)
    generator = torch.Generator().manual_seed(rank)
    norms = []
    for _ in range(steps):
        ddp.zero_grad()
        x, y = (torch.randn(ROWS, WIDTH, generator=generator) for _ in range(2))
        (ddp(x) * y).sum().div(ROWS).backward()
        kept = ours.state_dict()["memories"]["weight"]["residual"] if name == OURS else peers.error_dict.get(0)
        norms.append(0.0 if kept is None else float(kept.norm()))
    return norms


def measure(rank: int, steps: int) -> dict[str, list[float]]:
    return {name: residual_norms(rank, name, steps) for name in (OURS, PEER)}


def draw(norms: dict[str, list[float]], path: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, values in norms.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    last = norms[PEER][-1]
    roots = [last * (step / len(norms[PEER])) ** 0.5 for step in range(1, len(norms[PEER]) + 1)]
    axes.plot(range(1, len(roots) + 1), roots, linestyle=":", color="gray", label="√t")
    axes.set(xlabel="step", ylabel="norm of worker 0's residual", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--figure", metavar="PNG")
    options = parser.parse_args()
    norms: dict[str, list[float]] = processes.run(measure, options.steps)
    if options.figure:
        draw(norms, options.figure)
    at = sorted({step for step in (10, 50, 100, 200, 500, 1000, options.steps) if step <= options.steps})
    if options.json:
        rows = [{"method": name, **{str(step): values[step - 1] for step in at}} for name, values in norms.items()]
        print(json.dumps({"benchmark": "residuals", "steps": options.steps, "rank": RANK, "rows": rows}))
        return
    print(f"{'norm of the residual at step':28}" + "".join(f"{step:>9}" for step in at))
    for name, values in norms.items():
        print(f"{name:28}" + "".join(f"{values[step - 1]:9.2f}" for step in at))


if __name__ == "__main__":
    main()

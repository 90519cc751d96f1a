"""Claim: with default settings audits take under 5 % of training time, and change no bit of its results.

Two processes on one machine, gloo, one thread each. Each network trains twice from the same seeds, with audits and
without. "share" is the mean time of an audit (without the first, which warms what others reuse) over that of 50 median
steps, for audits come every 50 steps by default; "equal" whether all weights end alike, bit for bit.

    mlp        64-256-256-8-256-256-10, 64 rows a worker, PowerSGD at the bound: a step takes a few milliseconds
    resnet18   32 × 32 images, 32 a worker, PowerSGD at rank 4
    bert       BERT-base, 8 texts of 64 tokens a worker, PowerSGD at rank 4

    python benchmarks/audit_share.py                       # all three; BERT takes some minutes
    python benchmarks/audit_share.py --networks mlp --json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import processes
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress

EVERY = compress.AuditSettings().every
STEPS = {"mlp": (401, EVERY), "resnet18": (25, 8), "bert": (7, 3)}
"""How many steps, and how many of them to an audit: fewer than by default where steps are slow."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def make(network: str) -> tuple[nn.Module, Draw, dict[str, Any]]:
    """A network, what draws a worker's batch, and how gradients are sent."""
    torch.manual_seed(0)
    low = {"compressor": "powersgd", "policy": {"kind": "fixed", "rank": 4}}
    if network == "mlp":
        widths = [64, 256, 256, 8, 256, 256, 10]
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        example = torch.randn(64, 64), torch.randint(10, (64,))
        loss = nn.functional.cross_entropy
        bounds = compress.rank_bounds(model, example[:1], loss=loss, targets=example[1:], world_size=processes.WORKERS)
        at_bound = {"compressor": "powersgd", "policy": "bound", "bounds": bounds}
        return model, lambda g: (torch.randn(64, 64, generator=g), torch.randint(10, (64,), generator=g)), at_bound
    if network == "resnet18":
        from models import MODELS, Signature

        model = MODELS["resnet18"](kind="resnet18").build(Signature("images", (3, 32, 32), 10))  # type: ignore[call-arg]
        return model, lambda g: (torch.randn(32, 3, 32, 32, generator=g), torch.randint(10, (32,), generator=g)), low
    from transformers import BertConfig, BertForSequenceClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertForSequenceClassification(BertConfig(num_labels=4))

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.bert(tokens).logits
            return logits

    return Logits(), lambda g: (torch.randint(30_000, (8, 64), generator=g), torch.randint(4, (8,), generator=g)), low


def train(rank: int, network: str, steps: int, every: int) -> dict[str, Any]:
    """Train, and return rank 0's figures."""
    model, draw, sent = make(network)
    torch.manual_seed(1)  # of dropout
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    state = compress.register(ddp, audit={"every": every}, **sent)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    took: list[float] = []
    audits: list[float] = []
    for step in range(steps):
        inputs, labels = draw(generator)
        started, before = time.perf_counter(), state.auditor.seconds
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
        optimizer.step()
        audit = state.auditor.seconds - before
        took.append(time.perf_counter() - started - audit)
        if every and step % every == 0:
            audits.append(audit)
    weights = [parameter.detach().view(torch.int32).long().sum().item() for parameter in model.parameters()]
    return {"step_s": statistics.median(took), "audits_s": audits, "weights": weights}


def measure(network: str) -> dict[str, Any]:
    """Both runs of one network."""
    steps, every = STEPS[network]
    audited, plain = (processes.run(train, network, steps, often) for often in (every, 0))
    first, *others = audited["audits_s"]
    audit = statistics.fmean(others)
    return {
        "network": network,
        "steps": steps,
        "step_ms": 1000 * audited["step_s"],
        "audit_ms": 1000 * audit,
        "first_audit_ms": 1000 * first,
        "share": audit / (EVERY * audited["step_s"]),
        "equal": audited["weights"] == plain["weights"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for network in options.networks:
        rows.append(row := measure(network))
        if not options.json:
            print(
                f"{row['network']:10}{row['steps']:5} steps of {row['step_ms']:8.1f} ms, audits of "
                f"{row['audit_ms']:8.1f} ms (the first {row['first_audit_ms']:.1f}): share {row['share']:.2%}, "
                f"equal {row['equal']}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"benchmark": "audit_share", "rows": rows}))


if __name__ == "__main__":
    main()

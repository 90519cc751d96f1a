"""Claim: with default settings audits take under 5 % of training time, and change no bit of its results.

Two processes on one machine, gloo, one thread each. Each network trains twice from the same seeds, with audits as they
are by default (step 0 and every 50th) and without. "share" is the time of audits over that of all other things in the
steps, over whole periods of 50 steps; "equal" whether all weights end alike, bit for bit.

    mlp        64-256-256-8-256-256-10, 64 rows a worker, PowerSGD at the bound: a step takes a few milliseconds
    resnet18   32 × 32 images, 32 a worker, PowerSGD at rank 4
    bert       BERT-base, 8 texts of 64 tokens a worker, PowerSGD at rank 4

    python benchmarks/audit_share.py                       # all three; BERT takes some minutes
    python benchmarks/audit_share.py --networks mlp --json
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import processes
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress

EVERY = compress.AuditSettings().every
PERIODS = {"mlp": 8, "resnet18": 1, "bert": 1}
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


def train(rank: int, network: str, periods: int, every: int) -> dict[str, Any]:
    """Train for whole periods, the first step of which is audited; rank 0's figures."""
    model, draw, sent = make(network)
    torch.manual_seed(1)  # of dropout
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
    state = compress.register(ddp, audit={"every": every}, **sent)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    audits: list[float] = []
    began = time.perf_counter()
    for _ in range(EVERY * periods):
        inputs, labels = draw(generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(inputs), labels).backward()
        optimizer.step()
        audits.append(state.auditor.seconds)
    seconds = time.perf_counter() - began
    weights = [parameter.detach().view(torch.int32).long().sum().item() for parameter in model.parameters()]
    first = audits[0]  # which compiles and warms what others reuse
    return {"seconds": seconds, "audits_s": audits[-1], "first_s": first, "weights": weights}


def measure(network: str) -> dict[str, Any]:
    """Both runs of one network."""
    periods = PERIODS[network]
    audited, plain = (processes.run(train, network, periods, every) for every in (EVERY, 0))
    return {
        "network": network,
        "steps": EVERY * periods,
        "step_ms": 1000 * (audited["seconds"] - audited["audits_s"]) / (EVERY * periods),
        "audit_ms": 1000 * audited["audits_s"] / periods,
        "first_audit_ms": 1000 * audited["first_s"],
        "share": audited["audits_s"] / (audited["seconds"] - audited["audits_s"]),
        "equal": audited["weights"] == plain["weights"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(PERIODS), choices=list(PERIODS))
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

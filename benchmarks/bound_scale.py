"""How long bounds take, and how much memory: large transformers on the meta device, depth, and unrolled steps.

Each case runs in a process of its own with one thread, so that its peak memory is its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn


def _llama(layers: int) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers))
        ids = torch.zeros(1, 2048, dtype=torch.long)
    return model, {"input_ids": ids, "labels": ids, "use_cache": False}


def _gpt2(layers: int) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=layers, n_head=25))
        ids = torch.zeros(1, 1024, dtype=torch.long)
    return model, {"input_ids": ids, "labels": ids, "use_cache": False}


class Elman(nn.Module):
    """A linear Elman network, unrolled: h_t = U x_t + V h_{t−1}, behind a bottleneck of 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow, self.inward = nn.Linear(width, 2), nn.Linear(2, width)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.hidden.in_features)
        for t in range(x.shape[1]):
            state = self.inward(self.narrow(x[:, t])) + self.hidden(state)
        return self.out(state)


CASES = {
    "llama-7b, 2048 tokens": ("llama", 32),
    "gpt2-xl, 1024 tokens": ("gpt2", 48),
    **{f"llama width, {layers} layers": ("llama", layers) for layers in (4, 8, 16)},
    **{f"elman 64 wide, {steps} steps": ("elman", steps) for steps in (64, 128, 256, 512)},
}


def measure(name: str) -> dict[str, Any]:
    """Trace and bound one network: seconds, MiB, and what came out."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    from torch.nn.functional import mse_loss

    import compress

    kind, size = CASES[name]
    options: dict[str, Any] = {}
    if kind == "elman":
        model: nn.Module = Elman(64)
        args: tuple[Any, ...] = (torch.zeros(96, size, 64),)
        kwargs: dict[str, Any] = {}
        options = {"loss": mse_loss, "targets": (torch.zeros(96, 2),)}
    else:
        args = ()
        model, kwargs = (_llama if kind == "llama" else _gpt2)(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    bounds = compress.rank_bounds(model, args, kwargs, **options)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    below = sum(bound.rank < min(bound.shape) for bound in bounds.values())
    return {
        "case": name,
        "seconds": round(seconds, 2),
        "peak_mib": round(peak / 1024),
        "of_which_bounds_mib": round((peak - before) / 1024),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "matrices": len(bounds),
        "below_full": below,
        "unknown_ops": dict(bounds.unknown_ops),
    }


def main() -> None:
    """Run every case, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--case", choices=CASES, help="one case alone")
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(measure(options.case)) + "\n")
        return
    found = []
    for name in CASES:
        command = [sys.executable, __file__, "--case", name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found.append(json.loads(output.splitlines()[-1]))
        if not options.json:
            row = found[-1]
            sys.stdout.write(
                f"{name:<28} {row['seconds']:>7.1f} s {row['peak_mib']:>6} MiB "
                f"{row['matrices']:>5} matrices, {row['below_full']} below full rank\n"
            )
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Whether policy `tolerance` keeps its promise in the steps between audits, and at how many bytes.

    python benchmarks/tolerance.py [--tolerance 0.05] [--margin 0.5] [--steps 600] [--every 25] [--seed 0] [--json]

An MLP with a bottleneck of 8 learns the digits, PowerSGD and its error feedback run as they are, the workers in one
process. Ranks are chosen by audits; what counts are the other steps. *within* is the share of steps with
‖M − Ĝ‖ / ‖M‖ ≤ τ, of the worst matrix; *95 %* that percentile of the error, again of the worst matrix;
*worst* the largest.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from simulated import train_digits

from compress import TolerancePolicy

ALPHAS = (1.0, 0.9, 0.5, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--margin", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = TolerancePolicy(tolerance=options.tolerance, margin=options.margin)
    settings = {"steps": options.steps, "every": options.every, "seed": options.seed}
    if not options.json:
        print(f"{'batch':>8}{'α':>6}{'within':>9}{'95 %':>8}{'worst':>8}{'bytes':>8}{'at bound':>10}  of dense")
    rows = []
    for batch_size in (None, 128):
        for alpha in ALPHAS:
            simulation, loss = train_digits(policy, alpha, batch_size, **settings)
            errors = torch.tensor([simulation.between_audits(name) for name in simulation.errors], dtype=torch.float64)
            dense = sum(assignment.bytes for assignment in simulation.plan.dense.matrices)
            row = {
                "batch": batch_size or "full",
                "alpha": alpha,
                "within": float((errors <= policy.tolerance).double().mean(1).min()),
                "percentile_95": float(errors.quantile(0.95, dim=1).max()),
                "worst": float(errors.max()),
                "bytes": sum(simulation.bytes) / len(simulation.bytes) / dense,
                "bytes_at_bound": simulation.bytes[0] / dense,
                "loss": loss,
            }
            rows.append(row)
            if not options.json:
                print(
                    f"{row['batch']:>8}{alpha:6}{row['within']:9.3f}{row['percentile_95']:8.3f}{row['worst']:8.2f}"
                    f"{row['bytes']:8.2f}{row['bytes_at_bound']:10.2f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"benchmark": "tolerance", **settings, "tolerance": policy.tolerance, "rows": rows}))


if __name__ == "__main__":
    main()

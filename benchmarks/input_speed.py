"""How soon the first batch is there, and how fast they come: real files, one process a data set, as a worker has them.

    GRADRANK_DATA_ROOT=… python benchmarks/input_speed.py [--json]

`cold` begins with an empty cache, so that files are decoded or tokenised first; `warm` is every later time. Both
count from the import of gradrank to the first batch of 128 samples, without the import of torch. `step` is one training
step of the network that the data set is for, small, so that batches can be held against it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

PAIRS = {
    "mnist": ("vgg11", {"width": 8}),
    "cifar10": ("vgg11", {"width": 8}),
    "tiny_imagenet": ("vgg11", {"width": 8}),
    "wikitext2": ("bert", {"sequence_length": 64}),
    "multi30k": ("xlm", {"sequence_length": 64}),
}
BATCH = 128
BATCHES = 30
PROCESSES = (0, 1, 2)


def measure(kind: str, *, speed: bool) -> dict[str, Any]:
    """Seconds to the first batch; with `speed` also milliseconds a batch by processes, and of a training step."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    from models import DATA, MODELS, load_for
    from models.data.loader import Sharing, load_steps

    network, settings = PAIRS[kind]
    model = MODELS[network](**settings)
    dataset = load_for(model, DATA[kind](), 0)
    sharing = Sharing(BATCH, 1, world_size=1, rank=0, partition="iid", seed=0)
    (batch,) = next(load_steps(dataset.train, sharing, range(1)))
    result: dict[str, Any] = {"first_batch_s": round(time.perf_counter() - start, 2)}
    if not speed:
        return result
    for processes in PROCESSES:
        steps = load_steps(dataset.train, sharing, range(2 + BATCHES), processes=processes)
        next(steps), next(steps)  # processes have started
        start = time.perf_counter()
        for _ in steps:
            pass
        result[f"batch_ms_{processes}"] = round(1000 * (time.perf_counter() - start) / BATCHES, 2)
    built = model.build(dataset.signature)
    batch = batch.to(torch.device("cpu"), torch.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        dataset.task.loss(built(*batch.inputs), *batch.targets).backward()
        times.append(time.perf_counter() - start)
    result["step_ms"] = round(1000 * statistics.median(times), 1)
    return result


def in_own_process(kind: str, cache: str, *, speed: bool) -> dict[str, Any]:
    """Measure in a fresh process with a cache of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", kind, *(["--speed"] if speed else [])],
        env={**os.environ, "GRADRANK_CACHE": cache, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, speed=options.speed)))
        return
    rows = []
    for kind in PAIRS:
        with tempfile.TemporaryDirectory() as cache:
            cold = in_own_process(kind, cache, speed=False)["first_batch_s"]
            rows.append({"data": kind, "cold_s": cold, **in_own_process(kind, cache, speed=True)})
    if options.json:
        print(json.dumps({"batch": BATCH, "rows": rows}))
        return
    processes = "".join(f"{f'{count} processes':>14}" for count in PROCESSES)
    print(f"{'data':<15}{'cold s':>8}{'warm s':>8}{processes}{'step':>10}   (ms a batch of {BATCH}, ms a step)")
    for row in rows:
        batches = "".join(f"{row[f'batch_ms_{count}']:>14.2f}" for count in PROCESSES)
        print(f"{row['data']:<15}{row['cold_s']:>8.2f}{row['first_batch_s']:>8.2f}{batches}{row['step_ms']:>10.1f}")


if __name__ == "__main__":
    main()

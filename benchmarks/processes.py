"""Worker processes of a benchmark: started together, in one gloo group, one thread each."""

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORKERS = 2


class StuckError(Exception):
    """Processes that have not ended in the time given to them."""


def run(function: Callable[..., Any], *arguments: Any, workers: int = WORKERS, patience_s: float | None = None) -> Any:
    """Call `function(rank, *arguments)` in fresh processes of one group; return what rank 0 returned.

    Raises:
        SystemExit: a process failed.
        StuckError: they did not end within `patience_s`, and were killed.
    """
    context = mp.get_context("spawn")
    out: Queue[Any] = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        processes = [
            context.Process(target=_serve, args=(function, rank, workers, arguments, store, out))
            for rank in range(workers)
        ]
        for process in processes:
            process.start()
        deadline = None if patience_s is None else time.monotonic() + patience_s
        for process in processes:
            process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        stuck = [process for process in processes if process.is_alive()]
        for process in stuck:
            process.kill()
            process.join()
        if stuck:
            raise StuckError(f"{function.__name__}{arguments}: not done after {patience_s:g} s")
        if any(process.exitcode for process in processes):
            raise SystemExit(f"{function.__name__}{arguments}: a process failed")
        return out.get(timeout=10)


def _serve(
    function: Callable[..., Any], rank: int, workers: int, arguments: tuple[Any, ...], path: str, out: "Queue[Any]"
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(path, workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(minutes=5))
    result = function(rank, *arguments)
    if rank == 0:
        out.put(result)
    dist.barrier()
    dist.destroy_process_group()

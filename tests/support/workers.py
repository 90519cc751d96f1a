"""A group of processes that run functions side by side, each call in a process group of its own."""

import faulthandler
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import cloudpickle

_LENGTH = 8


def _write(stream: Any, value: Any) -> None:
    data = cloudpickle.dumps(value)
    stream.write(len(data).to_bytes(_LENGTH, "big") + data)
    stream.flush()


def _read(stream: Any) -> Any:
    header = stream.read(_LENGTH)
    if len(header) < _LENGTH:
        raise EOFError
    return cloudpickle.loads(stream.read(int.from_bytes(header, "big")))


class Workers:
    """Calls `function(rank, *args)` on every worker with a gloo group set up; returns their results."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, function: Callable[..., Any], *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """Run it; a worker that dies takes the others with it, and the next call has new ones.

        Raises:
            RuntimeError: the function raised on a worker, or a worker died.
        """
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)
        self._processes = self._processes or [self._start() for _ in range(self.world_size)]
        with tempfile.TemporaryDirectory() as folder:
            for rank, process in enumerate(self._processes):
                _write(process.stdin, (function, args, rank, self.world_size, f"{folder}/store", timeout_s))
            answers = [self._answer(rank) for rank in range(self.world_size)]
        failures = [f"worker {rank}:\n{answer}" for rank, (ok, answer) in enumerate(answers) if not ok]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [answer for _, answer in answers]

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).parents[2])
        return subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
        )

    def _answer(self, rank: int) -> tuple[bool, Any]:
        process = self._processes[rank]
        try:
            ok, answer = _read(process.stdout)
        except EOFError:
            code = process.wait(timeout=30)
            self.close()
            raise RuntimeError(f"worker {rank} died with exit code {code}; see its stderr") from None
        return ok, answer

    def close(self) -> None:
        for process in self._processes:
            process.kill()  # it waits for a request and holds nothing; to end by itself would take it a second
            process.wait(timeout=30)
        self._processes = []


def _serve() -> None:
    import torch
    import torch.distributed as dist

    faulthandler.enable()
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what tests print must not mix with answers
    requests = os.fdopen(os.dup(0), "rb")
    while True:
        try:
            function, args, rank, world_size, path, timeout_s = _read(requests)
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            store = dist.FileStore(path, world_size)
            timeout = timedelta(seconds=timeout_s)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
            try:
                _write(answers, (True, function(rank, *args)))
            finally:
                dist.destroy_process_group()
        except Exception:  # noqa: BLE001  # whatever a test raises is reported to the test
            _write(answers, (False, traceback.format_exc()))


if __name__ == "__main__":
    _serve()

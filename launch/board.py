"""The driver's board: an actor that hands cells to worker groups and collects what they report."""

import time
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["pending", "running", "finished", "failed"]


@dataclass(frozen=True)
class Failure:
    """What one worker says of a failed cell.

    Attributes:
        rank: of the worker.
        message: the error in one line.
        traceback: in full.
        by_peer: whether the error only says that another worker went away.
    """

    rank: int
    message: str
    traceback: str
    by_peer: bool


@dataclass
class CellState:
    """How far a cell is.

    Attributes:
        state: `pending` until all workers have begun it.
        begun: ranks that have begun it.
        failures: what workers say went wrong.
        failed_at: when the first of them said so, in seconds of the monotonic clock.
    """

    state: State = "pending"
    begun: set[int] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    failed_at: float = 0.0


class Board:
    """Cells of one worker group, by number, and events for the driver.

    The list is the driver's: a worker group that restarts after a death asks for the next cell and
    is given none that finished or failed.
    """

    def __init__(self, cells: list[int], world_size: int) -> None:
        self._cells = {cell: CellState() for cell in cells}
        self._world_size = world_size
        self._workers: dict[int, str] = {}
        self._events: list[dict[str, Any]] = []

    # --- workers ----------------------------------------------------------------------------------

    def join(self, rank: int, worker: str) -> None:
        """A worker is up; `worker` says where, in words. Rank 0 joining means a new group."""
        self._workers[rank] = worker
        if rank == 0:
            for number, cell in self._cells.items():
                if cell.state == "running":
                    self._fail(number, Failure(-1, "its worker group died", "", by_peer=True))

    def next_cell(self) -> int | None:
        """The next cell to run, None when all are done."""
        for number, cell in self._cells.items():
            if cell.state == "pending":
                cell.begun.clear()
                return number
        return None

    def begin(self, number: int, rank: int) -> None:
        """A worker begins a cell; it runs when all have."""
        cell = self._cells[number]
        cell.begun.add(rank)
        if len(cell.begun) == self._world_size and cell.state == "pending":
            cell.state = "running"
            self._events.append({"event": "running", "cell": number})

    def record(self, number: int, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a running cell at a step."""
        now = int(1000 * time.time())
        self._events.append({"event": "record", "cell": number, "step": step, "metrics": metrics, "timestamp_ms": now})

    def finish(self, number: int, result: dict[str, Any]) -> None:
        """Rank 0 has a cell's result."""
        cell = self._cells[number]
        if cell.state == "failed":
            return
        cell.state = "finished"
        self._events.append({"event": "finished", "cell": number, "result": result})

    def fail(self, number: int, failure: Failure) -> None:
        """A worker says that a cell failed."""
        self._fail(number, failure)

    def _fail(self, number: int, failure: Failure) -> None:
        cell = self._cells[number]
        if cell.state == "finished":
            return
        if cell.state != "failed":
            cell.state, cell.failed_at = "failed", time.monotonic()
        cell.failures.append(failure)

    # --- the driver -------------------------------------------------------------------------------

    def drain(self, grace_s: float) -> list[dict[str, Any]]:
        """Events since the last call.

        A failure is held back for `grace_s` seconds, so that every worker can say its part and the
        driver tells the cause rather than its echo.
        """
        events, self._events = self._events, []
        for number, cell in self._cells.items():
            complete = len({failure.rank for failure in cell.failures}) == self._world_size
            if cell.state == "failed" and cell.failed_at and (complete or time.monotonic() - cell.failed_at > grace_s):
                cell.failed_at = 0.0
                events.append({"event": "failed", "cell": number, **self._cause(cell)})
        return events

    def has_workers(self) -> bool:
        """Whether any worker ever joined."""
        return bool(self._workers)

    def unfinished(self) -> list[int]:
        """Cells that neither finished nor failed."""
        return [number for number, cell in self._cells.items() if cell.state in ("pending", "running")]

    def _cause(self, cell: CellState) -> dict[str, Any]:
        own = [failure for failure in cell.failures if not failure.by_peer]
        traceback = "\n".join(failure.traceback for failure in cell.failures)
        if own:
            return {"message": f"worker {own[0].rank}: {own[0].message}", "traceback": traceback}
        silent = sorted(set(range(self._world_size)) - {failure.rank for failure in cell.failures})
        if not silent:  # all are alive, and waited in vain
            said = cell.failures[0].message
            message = f"workers lost each other, or waited longer than cluster.timeout_s: {said}"
        else:
            names = ", ".join(f"worker {rank} ({self._workers.get(rank, 'never joined')})" for rank in silent)
            message = f"{names} died (killed, or out of memory) or is stuck"
        return {"message": message, "traceback": traceback}

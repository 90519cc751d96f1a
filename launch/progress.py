"""Progress of a study and of the cell that runs, with an estimate of the time left."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 10.0
_LEAST_SHARE = 0.03
"""Share of all steps before which nothing can be said of the time left."""


class StudyProgress:
    """Two bars on a terminal; elsewhere a line when a cell ends and one every ten seconds."""

    def __init__(self, console: Console, cells: int, steps: dict[int, int], names: dict[int, str]) -> None:
        """Take the number of cells, and for each cell its steps and its name."""
        self._console = console
        self._total, self._steps, self._names = cells, steps, names
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._study: TaskID = self._bars.add_task("study", total=sum(steps.values()), left="starting workers")
        self._cell: TaskID | None = None
        self._done: dict[int, int] = {}
        self._ended = 0
        self._study_began: float | None = None
        self._cell_began: float | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def running(self, cell: int) -> None:
        """A cell begins."""
        self._cell_began = time.monotonic()
        self._study_began = self._study_began or self._cell_began
        if self._cell is not None:
            self._bars.remove_task(self._cell)
        self._cell = self._bars.add_task(self._names[cell], total=self._steps[cell], left="")

    def advance(self, cell: int, step: int) -> None:
        """A cell has done so many steps."""
        self._done[cell] = step
        done, total = sum(self._done.values()), sum(self._steps.values())
        study_left = _left(self._study_began, done, total)
        cell_left = _left(self._cell_began, step, self._steps[cell])
        self._bars.update(self._study, completed=done, left=study_left)
        if self._cell is not None:
            self._bars.update(self._cell, completed=step, left=cell_left)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            line = f"  {self._names[cell]}: step {step} of {self._steps[cell]}, {cell_left}; study: {study_left}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def ended(self, cell: int, outcome: str) -> None:
        """A cell finished or failed."""
        self._ended += 1
        self.advance(cell, self._steps[cell])
        line = f"  {self._ended}/{self._total}  {self._names[cell]}: {outcome}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _left(began: float | None, done: int, total: int) -> str:
    """The time left at the pace since the beginning, in words."""
    if began is None or done < _LEAST_SHARE * total:
        return "estimating"
    seconds = (time.monotonic() - began) * (total - done) / done
    return f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left"

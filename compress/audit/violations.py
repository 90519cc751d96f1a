"""Broken bounds: a measured rank above what the architecture allows is an alarm, never noise."""

import logging
from collections.abc import Sequence
from typing import Literal

from compress.audit.row import AuditRow

logger = logging.getLogger(__name__)


class BrokenBoundError(RuntimeError):
    """A gradient's measured rank exceeds its bound: training is not what the bound was made for.

    Attributes:
        rows: of the audits that found it.
    """

    def __init__(self, rows: Sequence[AuditRow]) -> None:
        self.rows = list(rows)
        super().__init__("; ".join(map(tell, rows)))


class Violations:
    """Counts broken bounds, warns once a layer, or ends training.

    Attributes:
        count: rows of audits in which a bound was broken.
    """

    def __init__(self, on_violation: Literal["warn", "fail"]) -> None:
        self.count = 0
        self._on_violation = on_violation
        self._told: set[str] = set()

    def look(self, rows: Sequence[AuditRow], speaks: bool) -> None:
        """Look at the rows of one audit, which are alike on all workers.

        Args:
            rows: of all matrices.
            speaks: whether this worker logs.

        Raises:
            BrokenBoundError: a bound is broken, and `on_violation` is `fail`; on all workers.
        """
        broken = [row for row in rows if row.violated]
        self.count += len(broken)
        new = [row for row in broken if row.name not in self._told]
        self._told |= {row.name for row in new}
        if self._on_violation == "fail" and broken:
            raise BrokenBoundError(broken)
        for row in new if speaks else ():
            logger.warning("%s", tell(row))


def tell(row: AuditRow) -> str:
    """One broken bound in words, with what is needed to judge it."""
    assert row.bound is not None
    first = max(0, row.bound - 1)
    shown = ", ".join(f"σ_{first + 1 + i} = {value:.3g}" for i, value in enumerate(row.singular_values[first:][:4]))
    return (
        f"step {row.step}: the gradient of {row.name} ({row.m} × {row.n}) has measured rank {row.measured_rank}, above "
        f"its bound {row.bound}: {shown}; σ_1 = {row.singular_values[0]:.3g}, the tolerance is {row.tolerance:.3g}. "
        "Workers may hold different weights, or the bounds are of another network, loss or batch shape; call "
        "rank_bounds on what is trained"
    )

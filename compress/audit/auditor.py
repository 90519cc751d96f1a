"""The auditor: audits every so many steps, and keeps what audits saw."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from compress.audit.layers import LayerWatch
from compress.audit.row import AuditRow
from compress.audit.settings import AuditSettings
from compress.audit.step import AuditStep
from compress.audit.violations import Violations
from compress.exchange import Exchange
from compress.plan import Plan
from compress.policies import Observation

logger = logging.getLogger(__name__)

OnAudit = Callable[[Sequence[AuditRow]], None]
"""Is given the rows of one audited step, after it; called on every worker, with the same rows."""

_REMEMBERED = 64
"""Observations of each matrix that policies may look back on."""


class Auditor:
    """Audits a DDP model's gradients.

    Attributes:
        exchange: counts bytes and time of audits.
        seconds: time spent in audits.
        violations: of bounds.
    """

    def __init__(
        self,
        settings: AuditSettings,
        exchange: Exchange,
        model: DistributedDataParallel,
        on_audit: OnAudit | None = None,
    ) -> None:
        self.exchange = exchange
        self.seconds = 0.0
        self._kept: deque[Sequence[AuditRow]] = deque(maxlen=settings.keep)
        self.violations = Violations(settings.on_violation)
        self._settings = settings
        self._on_audit = on_audit
        self._observed: dict[str, deque[Observation]] = {}
        self._step = 0
        self._drops = False
        self._watch = LayerWatch(model, lambda: settings.is_due(self._step), settings.activations)

    @property
    def rows(self) -> list[AuditRow]:
        """Of the newest audited steps, oldest first, on rank 0; elsewhere none."""
        return [row for rows in self._kept for row in rows]

    @property
    def observed(self) -> Mapping[str, Sequence[Observation]]:
        """By matrix, what audits saw lately, oldest first; alike on all workers."""
        return {name: tuple(seen) for name, seen in self._observed.items()}

    def begin(self, plan: Plan, step: int) -> AuditStep | None:
        """Begin the audit of a step, if it is due."""
        return AuditStep(self.exchange, plan, self._settings, step) if self._settings.is_due(step) else None

    def exchange_noted(self, audit: AuditStep) -> None:
        """Average what the audit noted, once all gradients have arrived."""
        audit.exchange(self._watch.take())

    def end(self, audit: AuditStep | None, delivered: Mapping[str, Tensor], next_step: int) -> bool:
        """Measure what was delivered, once the step is over; returns whether policies have something new to see.

        Raises:
            BrokenBoundError: see `Violations`.
        """
        self._step = next_step
        if audit is None:
            return False
        rows = audit.after(delivered)
        self.seconds += audit.seconds
        if self.exchange.rank == 0 and rows:
            self._keep(rows)
        shown = [row for row in rows if self._settings.is_shown(row.step)]
        for row in shown:
            self._observed.setdefault(row.name, deque(maxlen=_REMEMBERED)).append(row.observation)
        if self._on_audit is not None and rows:
            self._on_audit(rows)
        self.violations.look(rows, speaks=self.exchange.rank == 0)
        return bool(shown)

    def _keep(self, rows: Sequence[AuditRow]) -> None:
        if len(self._kept) == self._settings.keep and self._on_audit is None and not self._drops:
            self._drops = True
            logger.warning(
                "more than %d steps were audited, so the rows of the oldest are dropped from now on; pass on_audit= to "
                "have them all, or audit={'keep': …}",
                self._settings.keep,
            )
        self._kept.append(rows)

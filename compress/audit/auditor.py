"""The auditor: audits every so many steps, and keeps what audits saw."""

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

OnAudit = Callable[[Sequence[AuditRow]], None]
"""Is given the rows of one audited step, after it; called on every worker, with the same rows."""

_REMEMBERED = 64
"""Observations of each matrix that policies may look back on."""


class Auditor:
    """Audits a DDP model's gradients.

    Attributes:
        exchange: counts bytes and time of audits.
        seconds: time spent in audits.
        rows: of all audited steps, on rank 0.
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
        self.rows: list[AuditRow] = []
        self.violations = Violations(settings.on_violation)
        self._settings = settings
        self._on_audit = on_audit
        self._observed: dict[str, deque[Observation]] = {}
        self._step = 0
        self._watch = LayerWatch(model, lambda: settings.is_due(self._step), settings.activations)

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
        if self.exchange.rank == 0:
            self.rows += rows
        shown = [row for row in rows if self._settings.is_shown(row.step)]
        for row in shown:
            self._observed.setdefault(row.name, deque(maxlen=_REMEMBERED)).append(row.observation)
        if self._on_audit is not None and rows:
            self._on_audit(rows)
        self.violations.look(rows, speaks=self.exchange.rank == 0)
        return bool(shown)

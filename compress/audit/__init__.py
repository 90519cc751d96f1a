"""What was true: measured rank, information loss, and whether a bound was broken."""

from compress.audit.auditor import Auditor
from compress.audit.measures import RankMeasurement
from compress.audit.rank import measure_rank, measure_ranks
from compress.audit.row import AuditedLoss, AuditRow, audited_loss
from compress.audit.settings import AuditSettings
from compress.audit.violations import BrokenBoundError, Violations

__all__ = [
    "AuditRow",
    "AuditSettings",
    "AuditedLoss",
    "Auditor",
    "BrokenBoundError",
    "RankMeasurement",
    "Violations",
    "audited_loss",
    "measure_rank",
    "measure_ranks",
]

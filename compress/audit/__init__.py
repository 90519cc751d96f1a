"""What was true: measured rank, information loss, and whether a bound was broken."""

from compress.audit.auditor import AuditRow, AuditSettings, AuditStep, audited_loss
from compress.audit.measures import RankMeasurement
from compress.audit.rank import measure_rank, measure_ranks

__all__ = ["AuditRow", "AuditSettings", "AuditStep", "RankMeasurement", "audited_loss", "measure_rank", "measure_ranks"]

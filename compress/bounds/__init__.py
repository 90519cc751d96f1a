"""Upper limits on gradient ranks that the architecture alone fixes."""

from compress.bounds.basis import Basis
from compress.bounds.engine import rank_bounds
from compress.bounds.result import Bounds, RankBound
from compress.bounds.rules.base import Call, register_rule
from compress.bounds.trace import TraceError
from compress.bounds.values import Value

__all__ = ["Basis", "Bounds", "Call", "RankBound", "TraceError", "Value", "rank_bounds", "register_rule"]

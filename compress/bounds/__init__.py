"""Upper limits on gradient ranks that the architecture alone fixes."""

from compress.bounds.engine import rank_bounds
from compress.bounds.result import Bounds, RankBound
from compress.bounds.trace import TraceError

__all__ = ["Bounds", "RankBound", "TraceError", "rank_bounds"]

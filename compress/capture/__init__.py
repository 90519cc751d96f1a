"""Capture: layers that keep their inputs A and adjoints Δ, and leave the product ΔᵀA to the exchange."""

from compress.capture.capture import Capture
from compress.capture.kinds import kind_of

__all__ = ["Capture", "kind_of"]

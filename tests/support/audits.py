"""What audits tell policies."""

import math
from collections.abc import Sequence

import compress


def audit(
    spectrum: Sequence[float],
    step: int = 0,
    error: float = 0.0,
    rank: int = 8,
    inputs: Sequence[float] | None = None,
    norm: float | None = None,
) -> compress.Observation:
    """What an audit saw; all of the spectrum unless the norm says that there is more."""
    inputs = spectrum if inputs is None else inputs
    return compress.Observation(
        step=step,
        rank=rank,
        measured_rank=sum(value > 1e-6 for value in spectrum),
        gradient_norm=norm or math.hypot(*spectrum),
        spectrum=tuple(spectrum),
        input_norm=math.hypot(*inputs),
        input_spectrum=tuple(inputs),
        compression_error=error,
    )

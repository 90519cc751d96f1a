"""One rule an op: how spaces of rows pass forward through it, and adjoints back."""

from compress.bounds.rules import (
    activations,
    attention,
    convolution,
    elementwise,
    linear,
    losses,
    norms,
    pooling,
    recurrent,
    shape,
)
from compress.bounds.rules.base import RULES, Call, Rule, Tracer, define

__all__ = [
    "RULES",
    "Call",
    "Rule",
    "Tracer",
    "activations",
    "attention",
    "convolution",
    "define",
    "elementwise",
    "linear",
    "losses",
    "norms",
    "pooling",
    "recurrent",
    "shape",
]

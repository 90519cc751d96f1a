"""Bandwidths and times as people write them: 25gbit, 1.5GB/s, 20us."""

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

_BITS = {"bit": 1.0, "b": 1.0, "B": 8.0, "byte": 8.0}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}

_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_BANDWIDTH = re.compile(_NUMBER + r"(?:([kKmMgGtT]?i?)(bit|byte|b|B)s?(?:/s|ps)?)?\s*")
_TIME = re.compile(_NUMBER + r"(s|ms|us|µs|μs|ns)?\s*")


def parse_bandwidth(given: str | float) -> float:
    """Read a bandwidth in bits per second: a number, or with a unit of bits or bytes (a capital B).

    Raises:
        ValueError: no number, an unknown unit, or not above zero.
    """
    allowed = "allowed are bits per second, such as 25gbit, 100mbit, 1.5GB/s or 1e9"
    found = _BANDWIDTH.fullmatch(str(given)) if not isinstance(given, bool) else None
    if found is None:
        raise ValueError(f"found {given!r}; {allowed}")
    number, prefix, unit = found.groups()
    bits = float(number) * _PREFIXES[(prefix or "").lower()] * _BITS[unit or "bit"]
    if not 0 < bits < math.inf:
        raise ValueError(f"found {given!r}, which is not above zero and finite; {allowed}")
    return bits


def parse_seconds(given: str | float) -> float:
    """Read a time in seconds: a number, or with a unit.

    Raises:
        ValueError: no number, an unknown unit, or below zero.
    """
    allowed = "allowed is a time, such as 20us, 0.1ms or 1e-5 (seconds)"
    found = _TIME.fullmatch(str(given)) if not isinstance(given, bool) else None
    if found is None:
        raise ValueError(f"found {given!r}; {allowed}")
    number, unit = found.groups()
    seconds = float(number) * _SECONDS[unit or "s"]
    if not 0 <= seconds < math.inf:
        raise ValueError(f"found {given!r}, which is not zero or above and finite; {allowed}")
    return seconds


Bandwidth = Annotated[float, BeforeValidator(parse_bandwidth)]
"""Bits per second, read from what people write."""

Seconds = Annotated[float, BeforeValidator(parse_seconds)]
"""Seconds, read from what people write."""


def tell_bandwidth(bits: float) -> str:
    """A bandwidth in short: 25 Gbit/s."""
    for unit, size in (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}"
    return f"{bits:.3g} bit/s"


def tell_seconds(seconds: float) -> str:
    """A time in short: 1.25 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"

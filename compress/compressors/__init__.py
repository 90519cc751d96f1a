"""Methods of averaging gradients, one small class each."""

from collections.abc import Mapping
from typing import Any

from compress.compressors.base import Compressor
from compress.compressors.dad import DAD
from compress.compressors.dense import Dense
from compress.compressors.powersgd import PowerSGD
from compress.spec import parse

COMPRESSORS: dict[str, type[Compressor]] = {"dense": Dense, "powersgd": PowerSGD, "dad": DAD}
"""Every compressor that a study file can name."""


def make_compressor(spec: str | Mapping[str, Any] | Compressor) -> Compressor:
    """Read a compressor's name or mapping.

    Raises:
        ValueError: it is unknown, or a field is wrong.
    """
    return parse(spec, COMPRESSORS, Compressor, "compressor")


__all__ = ["COMPRESSORS", "DAD", "Compressor", "Dense", "PowerSGD", "make_compressor"]

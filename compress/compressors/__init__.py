"""Methods of averaging gradients, one small class each."""

from collections.abc import Mapping
from typing import Any

from compress.compressors.base import Compressor
from compress.compressors.cast import BF16, FP16
from compress.compressors.dad import DAD
from compress.compressors.dense import Dense
from compress.compressors.powersgd import PowerSGD
from compress.compressors.rank_dad import RankDAD
from compress.compressors.subspace import Subspace
from compress.compressors.svd import SVD
from compress.compressors.topk import TopK
from compress.compressors.torch_powersgd import TorchPowerSGD
from compress.spec import parse

COMPRESSORS: dict[str, type[Compressor]] = {
    "dense": Dense,
    "fp16": FP16,
    "bf16": BF16,
    "topk": TopK,
    "svd": SVD,
    "powersgd": PowerSGD,
    "subspace": Subspace,
    "dad": DAD,
    "rank_dad": RankDAD,
    "torch_powersgd": TorchPowerSGD,
}
"""Every compressor that a study file can name."""


def make_compressor(spec: str | Mapping[str, Any] | Compressor) -> Compressor:
    """Read a compressor's name or mapping.

    Raises:
        ValueError: it is unknown, or a field is wrong.
    """
    return parse(spec, COMPRESSORS, Compressor, "compressor")


__all__ = [
    "BF16",
    "COMPRESSORS",
    "DAD",
    "FP16",
    "SVD",
    "Compressor",
    "Dense",
    "PowerSGD",
    "RankDAD",
    "Subspace",
    "TopK",
    "TorchPowerSGD",
    "make_compressor",
]

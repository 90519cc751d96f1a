"""The compressors that the contract suite runs over: one line for each compressor and setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Case:
    """A compressor with its settings, and what it promises.

    Attributes:
        name: in test ids.
        register: arguments of `compress.register`, besides bounds.
        methods: those that the plan must give some matrix, lest a case test nothing.
        network: a key of `contract_nets.NETWORKS`.
        loss: how far the delivered gradient may be from the true mean, relative, in float64; None where only
            error feedback makes up for what is lost.
        loss_float32: the same in float32, in the worst of 300 draws.
        keeps: whether it keeps a residual.
        bounds: whether it is given the architecture's bounds.
        two_level: whether it serves a two-level exchange.
    """

    name: str
    register: Mapping[str, Any]
    methods: tuple[str, ...]
    network: str = "linear"
    loss: float | None = 1e-11
    loss_float32: float = 1e-5
    keeps: bool = False
    bounds: bool = True
    two_level: bool = True

    @property
    def lossless(self) -> bool:
        return self.loss is not None and self.loss <= 1e-11

    @property
    def owes(self) -> float:
        """How far the sum of what was delivered and the mean residual may be from the true sum, relative."""
        return 1e-11 if self.keeps else self.loss or 0.0

    def __str__(self) -> str:
        return self.name


BOUND = {"policy": "bound"}
BELOW = {"policy": {"kind": "fixed", "rank": 2}}
TWICE = {"kind": "powersgd", "iterations": 2, "oversample": 3}
LOSSY = {"loss": None, "keeps": True, "bounds": False}
NEAR = {**LOSSY, "network": "leaky", "bounds": True}

CASES = [
    Case("dense", {"compressor": "dense"}, ("dense",)),
    Case("powersgd", {"compressor": "powersgd", **BOUND}, ("powersgd",)),
    Case("powersgd-conv", {"compressor": "powersgd", **BOUND}, ("powersgd",), network="convolutional"),
    Case("powersgd-twice", {"compressor": TWICE, **BOUND}, ("powersgd",)),
    Case("powersgd-below", {"compressor": "powersgd", **BELOW}, ("powersgd",), **LOSSY),
    Case("powersgd-below-conv", {"compressor": "powersgd", **BELOW}, ("powersgd",), network="convolutional", **LOSSY),
    Case("powersgd-below-twice", {"compressor": TWICE, **BELOW}, ("powersgd",), **LOSSY),
    Case("dad", {"compressor": "dad"}, ("dad",), two_level=False),
    Case("rank_dad", {"compressor": "rank_dad", **BOUND}, ("rank_dad",), two_level=False),
    Case("subspace", {"compressor": "subspace"}, ("subspace",)),
    Case("subspace-conv", {"compressor": "subspace"}, ("subspace",), network="convolutional"),
    Case("subspace-near", {"compressor": {"kind": "subspace", "near": True}}, ("subspace",), **NEAR),
    Case("svd", {"compressor": "svd", **BOUND}, ("svd",)),
    Case("svd-below", {"compressor": "svd", **BELOW}, ("svd",), **LOSSY),
    Case("topk", {"compressor": {"kind": "topk", "share": 0.1}}, ("topk",), **LOSSY),
    Case("fp16", {"compressor": "fp16"}, ("fp16",), loss=2e-3, loss_float32=2e-3),
    Case("bf16", {"compressor": "bf16"}, ("bf16",), loss=2e-2, loss_float32=2e-2),
    Case("mixed", {"compressor": ["powersgd", "dad"], **BOUND}, ("dad", "powersgd"), "convolutional", two_level=False),
]


def cases(**wanted: bool) -> list[Case]:
    """Those that are, or are not, `lossless`, `keeps` or `two_level`."""
    return [case for case in CASES if all(getattr(case, key) == value for key, value in wanted.items())]

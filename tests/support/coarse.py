"""Arithmetic coarser than float32, on CPUs."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


@contextlib.contextmanager
def coarse(how: str) -> Iterator[AbstractContextManager[None]]:
    """Run forward passes under "autocast" or "bf16 products"; gives the context for their backward passes."""
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield contextlib.nullcontext()  # autograd remembers what was cast
    else:
        with _bf16_products():
            yield _bf16_products()


@contextlib.contextmanager
def _bf16_products() -> Iterator[None]:
    backend = torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before

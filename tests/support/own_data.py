"""Data sets that studies of the tests name as `tests.support.own_data:function`."""

import numpy as np
import torch
import torch.distributed as dist

from models import Classification, Dataset, Signature, TensorSamples, TokenPrediction
from models.data.wikitext import Blocks


def _dataset(name: str, digest: str, shape: tuple[int, ...], count: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    samples = TensorSamples(torch.randn(count, *shape, generator=generator), torch.arange(count) % 3)
    kind = "images" if len(shape) == 3 else "features"
    return Dataset(name, "drawn", digest, Classification(), Signature(kind, shape, 3), samples, samples)


def images(fold: int, count: int = 24) -> Dataset:
    """Noise of two channels, 4 × 4, in three classes; what is trained on is held out too."""
    return _dataset("images", "", (2, 4, 4), count)


def one_direction(fold: int, shape: list[int]) -> Dataset:
    """Samples of which every row, the entries of the last axis, is a multiple of the same."""
    generator = torch.Generator().manual_seed(0)
    multiples = torch.randn(24, *shape[:-1], 1, generator=generator)
    samples = TensorSamples(multiples * torch.randn(shape[-1], generator=generator), torch.arange(24) % 3)
    kind = "images" if len(shape) == 3 else "series"
    return Dataset(
        "rows", "drawn", "", Classification(), Signature(kind, tuple(shape), 3), samples, samples, input_rank=1
    )


def differing(fold: int) -> Dataset:
    """Data whose digest differs from worker to worker."""
    return _dataset("differing", str(dist.get_rank()) if dist.is_initialized() else "0", (4,))


def text(fold: int, length: int) -> Dataset:
    """Masked tokens: forty pieces to train on, a single one held out."""
    ids = np.random.default_rng(0).integers(3, 50, 40 * length)
    train, test = (Blocks(part, length, 50, "masked") for part in (ids, ids[:length]))
    signature = Signature("tokens", (length,), 50, each_step=True, vocabulary=50)
    return Dataset("text", "drawn", "", TokenPrediction(), signature, train, test)

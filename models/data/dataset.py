"""A data set: what is trained on, what is held out, the task, and what a network must take and give."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.samples import Chosen, Reshaped, Samples
from models.data.signature import Kind, Signature
from models.tasks import Task


@dataclass(frozen=True)
class Dataset:
    """Training and held-out samples.

    Attributes:
        name: of the data set.
        source: where it comes from.
        digest: a short hash of the contents, the same on every machine.
        task: what is learnt.
        signature: what a network must take and give.
        train: samples to train on.
        test: samples held out.
        input_rank: dimensions of a space that holds every row (the entries of the last axis) of all inputs; None
            where that is not known.
        notes: what users must know, such as how many samples are missing of a data set that is only in part there.
    """

    name: str
    source: str
    digest: str
    task: Task
    signature: Signature
    train: Samples
    test: Samples
    input_rank: int | None = None
    notes: tuple[str, ...] = ()

    def viewed_as(self, kind: Kind) -> "Dataset":
        """The same samples for a network that takes another kind, one of `VIEWS`."""
        if kind == self.signature.kind:
            return self
        channels, height, width = self.signature.shape
        if kind == "features":
            return self._reshaped(kind, (channels * height * width,), None)
        return self._reshaped(kind, (height, channels * width), (2, 1, 3))

    def limited(self, train: int | None, held_out: int | None) -> "Dataset":
        """At most so many samples, spread evenly over all."""
        chosen = replace(self, train=_spread(self.train, train), test=_spread(self.test, held_out))
        if chosen.train is self.train and chosen.test is self.test:
            return self
        return replace(chosen, digest=digest_of(self.digest, f"{len(chosen.train)}, {len(chosen.test)}"))

    def _reshaped(self, kind: Kind, shape: tuple[int, ...], order: tuple[int, ...] | None) -> "Dataset":
        return replace(
            self,
            signature=replace(self.signature, kind=kind, shape=shape),
            input_rank=None,  # rows of another shape are others
            train=Reshaped(self.train, shape, order),
            test=Reshaped(self.test, shape, order),
        )


def digest_of(*parts: Tensor | NDArray[np.generic] | str | None) -> str:
    """A short hash of tensors, their shapes and types, and texts."""
    content = hashlib.sha256()
    for part in parts:
        if part is None or isinstance(part, str):
            content.update(repr(part).encode())
            continue
        array = np.ascontiguousarray(part)
        content.update(f"{array.dtype} {tuple(part.shape)}".encode())
        content.update(array.data)
    return content.hexdigest()[:16]


def _spread(samples: Samples, most: int | None) -> Samples:
    if most is None or most >= len(samples):
        return samples
    # Files are often sorted by class, so that the first ones would be of few classes.
    return Chosen(samples, torch.arange(most) * len(samples) // most)

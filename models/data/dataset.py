"""A data set in memory: what is trained on, what is held out, and the task."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor

from models.tasks import Task

FOLDS = 5


@dataclass(frozen=True)
class Samples:
    """Rows of inputs and what is expected of each; for reconstruction `targets` is `inputs` itself.

    Attributes:
        inputs: samples × features, floating point.
        targets: class numbers (samples,) or samples × features.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor) -> "Samples":
        """The samples of these numbers; targets that are the inputs stay the same tensor."""
        inputs = self.inputs[indices]
        return Samples(inputs, inputs if self.targets is self.inputs else self.targets[indices])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Samples":
        """Move to a device and a floating-point type; class numbers keep theirs."""
        inputs = self.inputs.to(device, dtype)
        if self.targets is self.inputs:
            return Samples(inputs, inputs)
        targets = self.targets.to(device)
        return Samples(inputs, targets.to(dtype) if targets.is_floating_point() else targets)


@dataclass(frozen=True)
class Dataset:
    """Training and held-out samples of one fold.

    Attributes:
        name: of the data set.
        source: where it comes from.
        task: what is learnt.
        outputs: features or classes that a network must give.
        input_rank: dimensions of a space that holds all inputs, None where that is not known.
    """

    name: str
    source: str
    task: Task
    train: Samples
    test: Samples
    outputs: int
    input_rank: int | None = None

    @property
    def inputs(self) -> int:
        """Features of a sample."""
        return int(self.train.inputs.shape[1])

    @property
    def digest(self) -> str:
        """A short hash of the contents."""
        content = hashlib.sha256()
        for tensor in (self.train.inputs, self.train.targets, self.test.inputs, self.test.targets):
            content.update(tensor.numpy().tobytes())
        return content.hexdigest()[:16]


def split(inputs: Tensor, targets: Tensor | None, fold: int) -> tuple[Samples, Samples]:
    """Split samples into training and held-out ones, by shuffled five-fold cross-validation.

    The shuffle is always the same, so that folds are disjoint. Without targets, the inputs are the targets.

    Raises:
        ValueError: fold outside 0 to 4.
    """
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold is {fold}; it must be 0 to {FOLDS - 1}")
    folds = list(KFold(FOLDS, shuffle=True, random_state=0).split(np.arange(len(inputs))))
    train, test = (torch.from_numpy(indices) for indices in folds[fold])
    samples = Samples(inputs, inputs if targets is None else targets)
    return samples.take(train), samples.take(test)

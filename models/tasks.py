"""What is learnt: the loss of a batch, and the metric of held-out data."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor


class Task(ABC):
    """A loss, and a metric as sums over samples, so that workers' shares add up exactly."""

    metric: str
    """Name of the metric: `accuracy` or `reconstruction_error`."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abstractmethod
    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        """Sums over a batch, float64: [loss, metric's numerator, metric's denominator, samples]."""

    @abstractmethod
    def summarise(self, sums: Tensor) -> tuple[float, float]:
        """Mean loss and metric from sums over all samples."""


class Classification(Task):
    """Cross-entropy; accuracy is the share of samples whose largest output is their class."""

    metric = "accuracy"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        output = output.to(torch.float64)
        loss = F.cross_entropy(output, target, reduction="sum")
        right = (output.argmax(dim=1) == target).sum()
        return torch.stack([loss, right.to(loss), loss.new_tensor(len(target)), loss.new_tensor(len(target))])

    def summarise(self, sums: Tensor) -> tuple[float, float]:
        loss, right, count, samples = sums.tolist()
        return loss / samples, right / count


class Reconstruction(Task):
    """Squared error; the reconstruction error is ‖X − Y‖_F / ‖X‖_F over all samples."""

    metric = "reconstruction_error"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        output, target = output.to(torch.float64), target.to(torch.float64)
        squares = (output - target).square().sum()
        samples = squares.new_tensor(len(target))
        return torch.stack([squares / target.shape[1], squares, target.square().sum(), samples])

    def summarise(self, sums: Tensor) -> tuple[float, float]:
        loss, squares, energy, samples = sums.tolist()
        return loss / samples, (squares / energy) ** 0.5 if energy else 0.0

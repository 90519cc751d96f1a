"""What is learnt: the loss of a batch, and the metric of held-out data."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_PREDICTED = -100
"""Target of positions whose token is not to be predicted."""


class Task(ABC):
    """A loss, and a metric as sums over samples, so that workers' shares add up exactly."""

    metric: str
    """Name of the metric, such as `accuracy`; studies show those of this file in their tables."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""

    @abstractmethod
    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        """Sums over a batch, float64: [loss, what it is the sum over, metric's numerator, metric's denominator]."""

    def summarise(self, sums: Tensor) -> tuple[float, float]:
        """Mean loss and metric from sums over all samples."""
        loss, count, numerator, denominator = sums.tolist()
        return loss / count, self.measure(numerator, denominator)

    def measure(self, numerator: float, denominator: float) -> float:
        """The metric from its sums."""
        return numerator / denominator


class Classification(Task):
    """Cross-entropy; accuracy is the share of samples whose largest output is their class.

    Outputs are samples × classes.
    """

    metric = "accuracy"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        output = output.to(torch.float64)
        loss = F.cross_entropy(output, target, reduction="sum")
        right, count = (output.argmax(dim=1) == target).sum().to(loss), loss.new_tensor(len(target))
        return torch.stack([loss, count, right, count])


class Regression(Task):
    """Squared error; the error measured is ‖Y − T‖_F / ‖T‖_F over all samples.

    Outputs and targets are samples × features or samples × steps × features.
    """

    metric = "regression_error"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        output, target = output.to(torch.float64), target.to(torch.float64)
        squares = (output - target).square().sum()
        return torch.stack([squares, squares.new_tensor(target.numel()), squares, target.square().sum()])

    def measure(self, numerator: float, denominator: float) -> float:
        return (numerator / denominator) ** 0.5 if denominator else 0.0


class Reconstruction(Regression):
    """Squared error against the inputs themselves: ‖Y − X‖_F / ‖X‖_F."""

    metric = "reconstruction_error"


class TokenPrediction(Task):
    """Cross-entropy of the tokens to be predicted; perplexity is the exponential of its mean.

    Outputs are samples × positions × vocabulary; positions whose target is `NOT_PREDICTED` do not count.
    With masked tokens the perplexity is that of the masked ones given the others.
    """

    metric = "perplexity"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=NOT_PREDICTED)

    def sums(self, output: Tensor, target: Tensor) -> Tensor:
        asked = target != NOT_PREDICTED
        loss = F.cross_entropy(output[asked].to(torch.float64), target[asked], reduction="sum")
        count = asked.sum().to(loss)
        return torch.stack([loss, count, loss, count])

    def measure(self, numerator: float, denominator: float) -> float:
        return float(torch.tensor(numerator / denominator, dtype=torch.float64).exp())

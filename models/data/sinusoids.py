"""Sinusoids: series a·sin(b·t) + c with t from −2π to 2π."""

from math import pi
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from models.config import Count, DataConfig, Seed
from models.data.dataset import Dataset
from models.data.folds import hold_out
from models.data.samples import TensorSamples
from models.data.signature import Kind, Signature
from models.tasks import Reconstruction, Regression

Points = Annotated[int, Field(ge=2)]


class Sinusoids(DataConfig):
    """Each feature of each series is a sinusoid a·sin(b·t) + c; a, b and c are standard normal.

    Attributes:
        points: of a series, evenly spaced in [−2π, 2π].
        features: sinusoids side by side in a series.
        samples: series, held-out ones included.
        task: `forecast` the next point at each point, or `reconstruction` of the point itself.
        seed: of a, b and c.
    """

    kind: Literal["sinusoids"] = "sinusoids"
    points: Points = 64
    features: Count = 16
    samples: Annotated[int, Field(ge=10)] = 2048
    task: Literal["forecast", "reconstruction"] = "forecast"
    seed: Seed = 0

    gives: ClassVar[Kind | None] = "series"

    def load(self, fold: int, length: int | None = None) -> Dataset:
        generator = torch.Generator().manual_seed(self.seed)
        a, b, c = torch.randn(3, self.samples, 1, self.features, generator=generator, dtype=torch.float64)
        forecast = self.task == "forecast"
        # One point more than a series has: the last one's next.
        step = 4 * pi / (self.points - 1)
        t = torch.arange(self.points + forecast, dtype=torch.float64)[:, None] * step - 2 * pi
        series = a * torch.sin(b * t) + c
        inputs, targets = (series[:, :-1], series[:, 1:]) if forecast else (series, None)
        train, test = hold_out(TensorSamples(inputs, targets), fold)
        return Dataset(
            name="sinusoids",
            source=f"a·sin(b·t) + c, {self.points} points in [−2π, 2π], {self.features} features, seed {self.seed}",
            digest=self.settings_digest(fold),
            task=Regression() if forecast else Reconstruction(),
            signature=Signature("series", (self.points, self.features), self.features, each_step=True, ahead=forecast),
            train=train,
            test=test,
        )

"""Gaussian samples, of full rank or embedded from fewer dimensions."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from models.config import DataConfig
from models.data.dataset import Dataset, split
from models.tasks import Reconstruction


class Gaussian(DataConfig):
    """Standard normal samples in `rank` dimensions, embedded in `features` by a random isometry.

    Attributes:
        features: of a sample.
        rank: dimensions that the samples span; None for all.
        samples: how many, held-out ones included.
        seed: of the samples and the embedding.
    """

    kind: Literal["gaussian"] = "gaussian"
    features: Annotated[int, Field(ge=1)] = 128
    rank: Annotated[int, Field(ge=1)] | None = None
    samples: Annotated[int, Field(ge=10)] = 2048
    seed: int = 0

    @model_validator(mode="after")
    def _rank_fits(self) -> Self:
        if self.rank is not None and self.rank > self.features:
            raise ValueError(f"rank is {self.rank}, more than the {self.features} features")
        return self

    def load(self, fold: int) -> Dataset:
        generator = torch.Generator().manual_seed(self.seed)
        rank = self.rank or self.features
        inputs = torch.randn(self.samples, rank, generator=generator, dtype=torch.float64)
        if rank < self.features:
            # Full-rank samples stay as they are; an isometry keeps the variance of embedded ones.
            basis, _ = torch.linalg.qr(torch.randn(self.features, rank, generator=generator, dtype=torch.float64))
            inputs = inputs @ basis.mT
        train, test = split(inputs, None, fold)
        return Dataset(
            name="gaussian",
            source=f"standard normal, {rank} dimensions in {self.features}, seed {self.seed}",
            task=Reconstruction(),
            train=train,
            test=test,
            outputs=self.features,
            input_rank=rank if rank < self.features else None,
        )

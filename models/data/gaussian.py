"""Gaussian samples, of full rank or embedded from fewer dimensions, one cluster or a mixture."""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.config import Count, DataConfig, Seed
from models.data.dataset import Dataset
from models.data.folds import hold_out
from models.data.samples import TensorSamples
from models.data.signature import Kind, Signature
from models.tasks import Classification, Reconstruction, Regression, Task

Variance = Annotated[float, Field(ge=0)]


class Gaussian(DataConfig):
    """Normal samples in `rank` dimensions, embedded in `features` by a random isometry.

    Attributes:
        features: of a sample.
        rank: dimensions that the samples span; None for all.
        samples: how many, held-out ones included.
        mean: of each dimension: one number for all, or `rank` numbers.
        covariance: of the dimensions: one variance for all, `rank` variances, or a matrix.
        components: clusters of a mixture, chosen evenly.
        separation: standard deviation of the clusters' means around `mean`, in a mixture.
        task: `reconstruction` of the samples; `regression` onto `outputs` features, a random linear map of
            them; or `classification` of a mixture's clusters.
        outputs: features to regress onto: a low-rank output.
        seed: of the samples, the embedding and the linear map.
    """

    kind: Literal["gaussian"] = "gaussian"
    features: Count = 128
    rank: Count | None = None
    samples: Annotated[int, Field(ge=10)] = 2048
    mean: float | tuple[float, ...] = 0.0
    covariance: Variance | tuple[Variance, ...] | tuple[tuple[float, ...], ...] = 1.0
    components: Count = 1
    separation: Annotated[float, Field(gt=0)] = 4.0
    task: Literal["reconstruction", "regression", "classification"] = "reconstruction"
    outputs: Count | None = None
    seed: Seed = 0

    gives: ClassVar[Kind | None] = "features"

    @property
    def dimensions(self) -> int:
        """Dimensions that the samples span."""
        return self.rank or self.features

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rank is not None and self.rank > self.features:
            raise ValueError(f"rank is {self.rank}, more than the {self.features} features")
        if isinstance(self.mean, tuple) and len(self.mean) != self.dimensions:
            raise ValueError(f"mean has {len(self.mean)} numbers; give one, or {self.dimensions}, one a dimension")
        self._square_root()
        if self.task == "classification" and self.components < 2:
            raise ValueError("task is classification, which takes 2 components or more")
        if (self.task == "regression") != (self.outputs is not None):
            raise ValueError(f"outputs is {self.outputs} and task is {self.task}; regression alone has outputs")
        return self

    def load(self, fold: int, length: int | None = None) -> Dataset:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inputs = normal(self.samples, self.dimensions) @ self._square_root() + torch.tensor(self.mean).double()
        clusters = torch.arange(self.samples) % self.components
        if self.components > 1:
            inputs = inputs + self.separation * normal(self.components, self.dimensions)[clusters]
        if self.dimensions < self.features:
            # Full-rank samples stay as they are; an isometry keeps the variance of embedded ones.
            basis, _ = torch.linalg.qr(normal(self.features, self.dimensions))
            inputs = inputs @ basis.mT
        task: Task = Reconstruction()
        targets, outputs = None, self.features
        if self.task == "classification":
            task, targets, outputs = Classification(), clusters, self.components
        elif self.outputs is not None:
            task, outputs = Regression(), self.outputs
            targets = inputs @ normal(self.features, outputs) / self.features**0.5
        train, test = hold_out(TensorSamples(inputs, targets), fold)
        mixture = f"{self.components} clusters, " if self.components > 1 else ""
        return Dataset(
            name="gaussian",
            source=f"normal, {mixture}{self.dimensions} dimensions in {self.features}, seed {self.seed}",
            digest=self.settings_digest(fold),
            task=task,
            signature=Signature("features", (self.features,), outputs),
            train=train,
            test=test,
            input_rank=self.dimensions if self.dimensions < self.features else None,
        )

    def _square_root(self) -> Tensor:
        """A matrix R with RᵀR the covariance, so that rows z R have it."""
        size = self.dimensions
        allowed = f"give a variance, {size} variances, or a {size} × {size} matrix"
        try:
            given = torch.tensor(self.covariance, dtype=torch.float64)
        except ValueError as error:
            raise ValueError(f"covariance has rows of different lengths; {allowed}") from error
        if given.dim() == 0:
            return given.sqrt() * torch.eye(size, dtype=torch.float64)
        if given.shape == (size,):
            return given.sqrt().diag()
        if given.shape != (size, size):
            shape = " × ".join(str(length) for length in given.shape)
            raise ValueError(f"covariance is {shape}; {allowed}")
        values, vectors = torch.linalg.eigh(given)
        if not torch.equal(given, given.mT) or float(values[0]) < -1e-12 * float(values.abs().max()):
            raise ValueError("covariance is not symmetric and positive semidefinite; give X.T @ X for some matrix X")
        root: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.mT
        return root

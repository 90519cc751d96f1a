"""Handwritten digits that ship inside scikit-learn: 1,797 images of 8 × 8 pixels (UCI test set)."""

from typing import ClassVar, Literal

import torch

from models.config import DataConfig
from models.data.dataset import Dataset, digest_of
from models.data.folds import hold_out
from models.data.samples import TensorSamples
from models.data.signature import Kind, Signature
from models.tasks import Classification, Reconstruction


class Digits(DataConfig):
    """Pixels as 64 features in [0, 1]; to be classified into 10 digits, or reconstructed."""

    kind: Literal["digits"] = "digits"
    task: Literal["classification", "reconstruction"] = "classification"

    gives: ClassVar[Kind | None] = "features"

    def load(self, fold: int, length: int | None = None) -> Dataset:
        from sklearn.datasets import load_digits  # takes a second to import

        pixels, labels = load_digits(return_X_y=True)
        inputs, classes = torch.from_numpy(pixels).to(torch.float32) / 16, torch.from_numpy(labels)
        classify = self.task == "classification"
        train, test = hold_out(TensorSamples(inputs, classes if classify else None), fold)
        return Dataset(
            name="digits",
            source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test set)",
            digest=digest_of(inputs, classes, self.task, str(fold)),
            task=Classification() if classify else Reconstruction(),
            signature=Signature("features", (64,), outputs=10 if classify else 64),
            train=train,
            test=test,
        )

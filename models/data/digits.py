"""Handwritten digits that ship inside scikit-learn: 1,797 images of 8 × 8 pixels (UCI test set)."""

from typing import Literal

import torch
from sklearn.datasets import load_digits

from models.config import DataConfig
from models.data.dataset import Dataset, split
from models.tasks import Classification, Reconstruction


class Digits(DataConfig):
    """Pixels as 64 features in [0, 1]; to be classified into 10 digits, or reconstructed."""

    kind: Literal["digits"] = "digits"
    task: Literal["classification", "reconstruction"] = "classification"

    def load(self, fold: int) -> Dataset:
        pixels, labels = load_digits(return_X_y=True)
        inputs = torch.from_numpy(pixels).to(torch.float32) / 16
        classify = self.task == "classification"
        train, test = split(inputs, torch.from_numpy(labels) if classify else None, fold)
        return Dataset(
            name="digits",
            source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test set)",
            task=Classification() if classify else Reconstruction(),
            train=train,
            test=test,
            outputs=10 if classify else inputs.shape[1],
        )

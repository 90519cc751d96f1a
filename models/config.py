"""What networks and data sets declare: typed knobs under a `kind`."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from models.data.dataset import Dataset


class Config(BaseModel):
    """Frozen, typed settings; unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    kind: str


class ModelConfig(Config, ABC):
    """A network by its knobs."""

    @abstractmethod
    def build(self, inputs: int, outputs: int) -> nn.Module:
        """Make the network for rows of `inputs` features and `outputs` features or classes."""

    @property
    @abstractmethod
    def knobs(self) -> dict[str, float]:
        """What studies compare: `bottleneck` (else the width), `sequence_length` (else 1), `alpha` (else 1)."""


class DataConfig(Config, ABC):
    """A data set by its settings."""

    @abstractmethod
    def load(self, fold: int) -> Dataset:
        """Load the data, held out by one fold of five-fold cross-validation.

        Raises:
            ValueError: fold outside 0 to 4.
        """

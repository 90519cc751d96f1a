"""What networks and data sets declare: typed knobs under a `kind`."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import nn

from models.data.dataset import Dataset, digest_of
from models.data.files import absolute
from models.data.signature import Kind, Signature

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Slope = Annotated[float, Field(ge=0, le=1)]
"""Of a Leaky-ReLU for negative inputs: 0 is ReLU, 1 makes it linear."""

Folder = Annotated[Path, AfterValidator(absolute)]
"""Made absolute where the study is read, since workers run elsewhere."""


class Config(BaseModel):
    """Frozen, typed settings; unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    kind: str


class ModelConfig(Config, ABC):
    """A network by its knobs.

    Attributes:
        takes: kinds of samples that the network can be made for, the most natural first; empty for any.
    """

    takes: ClassVar[tuple[Kind, ...]] = ()

    @abstractmethod
    def build(self, signature: Signature) -> nn.Module:
        """Make the network.

        A recurrent one may have a method `initial_state(rows)`, a tuple of tensors: given them behind its
        inputs, it gives (output, *state), and is trained on series longer than `length`.

        Raises:
            ValueError: the knobs do not serve such samples.
        """

    @property
    def length(self) -> int | None:
        """Steps or positions of one pass: of truncated backpropagation through time, or of a piece of text.

        None for whole series.
        """
        return None

    @property
    @abstractmethod
    def knobs(self) -> dict[str, float]:
        """What studies compare.

        `bottleneck` (else the width; 0 where that is not known), `sequence_length` (else 1; 0 for whole series) and
        `alpha` (else 1; 0 for activations that bend in another way).
        """


class DataConfig(Config, ABC):
    """A data set by its settings.

    Attributes:
        gives: kind of its samples; None where that is known only when they are loaded.
        partition: which samples a worker sees. `iid`: a share of each step's, drawn from all. `by_class`: only
            those of its own classes, as sorted by class and cut evenly.
        train_samples: at most so many are trained on.
        held_out_samples: at most so many are evaluated on.
    """

    partition: Literal["iid", "by_class"] = "iid"
    train_samples: Count | None = None
    held_out_samples: Count | None = None

    gives: ClassVar[Kind | None] = None

    def settings_digest(self, fold: int) -> str:
        """A digest for samples that are computed: of what decides them, since processors differ in their last bits."""
        return digest_of(self.model_dump_json(exclude={"partition", "train_samples", "held_out_samples"}), str(fold))

    @abstractmethod
    def load(self, fold: int, length: int | None = None) -> Dataset:
        """Load the data.

        Args:
            fold: of five-fold cross-validation, 0 to 4; its fifth is held out.
            length: positions that a piece of text has; else of no account.

        Raises:
            DataError: files are missing or broken, or settings do not serve them.
        """

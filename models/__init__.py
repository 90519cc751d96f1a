"""Networks and data sets, chosen by name with typed knobs."""

from models.config import DataConfig, ModelConfig
from models.data.dataset import Dataset, Samples
from models.data.digits import Digits
from models.data.gaussian import Gaussian
from models.mlp import MLP
from models.tasks import Classification, Reconstruction, Task

MODELS: dict[str, type[ModelConfig]] = {"mlp": MLP}
"""Every network that a study file can name."""

DATA: dict[str, type[DataConfig]] = {"digits": Digits, "gaussian": Gaussian}
"""Every data set that a study file can name."""

__all__ = [
    "DATA",
    "MLP",
    "MODELS",
    "Classification",
    "DataConfig",
    "Dataset",
    "Digits",
    "Gaussian",
    "ModelConfig",
    "Reconstruction",
    "Samples",
    "Task",
]

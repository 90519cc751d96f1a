"""Networks and data sets, chosen by name with typed knobs."""

from models.config import DataConfig, ModelConfig
from models.data.cifar10 import CIFAR10
from models.data.dataset import Dataset, digest_of
from models.data.digits import Digits
from models.data.errors import DataError
from models.data.folds import hold_out
from models.data.gaussian import Gaussian
from models.data.mnist import MNIST
from models.data.multi30k import Multi30k
from models.data.samples import Batch, Samples, TensorSamples
from models.data.signature import Signature
from models.data.sinusoids import Sinusoids
from models.data.tiny_imagenet import TinyImageNet
from models.data.wikitext import WikiText2, WikiText103
from models.mlp import MLP
from models.own import OwnData, OwnModel
from models.pairing import load_for
from models.recurrent import GRU, LSTM, Elman
from models.resnet import ResNet16, ResNet18
from models.tasks import Classification, Reconstruction, Regression, Task, TokenPrediction
from models.transformer import BERT, XLM
from models.vgg import VGG11

MODELS: dict[str, type[ModelConfig]] = {
    "mlp": MLP,
    "elman": Elman,
    "gru": GRU,
    "lstm": LSTM,
    "vgg11": VGG11,
    "resnet16": ResNet16,
    "resnet18": ResNet18,
    "bert": BERT,
    "xlm": XLM,
}
"""Every network that a study file can name."""

DATA: dict[str, type[DataConfig]] = {
    "gaussian": Gaussian,
    "sinusoids": Sinusoids,
    "digits": Digits,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "tiny_imagenet": TinyImageNet,
    "wikitext2": WikiText2,
    "wikitext103": WikiText103,
    "multi30k": Multi30k,
}
"""Every data set that a study file can name."""

__all__ = [
    "BERT",
    "CIFAR10",
    "DATA",
    "GRU",
    "LSTM",
    "MLP",
    "MNIST",
    "MODELS",
    "VGG11",
    "XLM",
    "Batch",
    "Classification",
    "DataConfig",
    "DataError",
    "Dataset",
    "Digits",
    "Elman",
    "Gaussian",
    "ModelConfig",
    "Multi30k",
    "OwnData",
    "OwnModel",
    "Reconstruction",
    "Regression",
    "ResNet16",
    "ResNet18",
    "Samples",
    "Signature",
    "Sinusoids",
    "Task",
    "TensorSamples",
    "TinyImageNet",
    "TokenPrediction",
    "WikiText2",
    "WikiText103",
    "digest_of",
    "hold_out",
    "load_for",
]

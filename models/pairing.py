"""A network and a data set together: the data as the network takes them."""

from functools import lru_cache

from models.config import DataConfig, ModelConfig
from models.data.dataset import Dataset
from models.data.errors import DataError
from models.data.signature import VIEWS, Kind


def load_for(model: ModelConfig, data: DataConfig, fold: int) -> Dataset:
    """Load a data set for a network; the last few are kept, for networks that take the same.

    Raises:
        DataError: the files cannot be read, or the network does not take such samples.
    """
    if data.gives is not None:
        _view(model, data, data.gives)
    whole = data.model_copy(update={"train_samples": None, "held_out_samples": None, "partition": "iid"})
    dataset = _loaded(whole, fold, model.length).limited(data.train_samples, data.held_out_samples)
    viewed = dataset.viewed_as(_view(model, data, dataset.signature.kind))
    _check_length(model, viewed)
    return viewed


def _view(model: ModelConfig, data: DataConfig, given: Kind) -> Kind:
    """The kind of samples that the network is given."""
    if not model.takes:
        return given
    for kind in model.takes:
        if kind in VIEWS[given]:
            return kind
    raise DataError(f"model {model.kind} takes {' or '.join(model.takes)}; data {data.kind} has {given}")


@lru_cache(maxsize=16)
def _loaded(data: DataConfig, fold: int, length: int | None) -> Dataset:
    return data.load(fold, length)


def _check_length(model: ModelConfig, dataset: Dataset) -> None:
    if dataset.signature.kind != "series" or model.length is None:
        return
    steps = dataset.signature.shape[0]
    if model.length > steps:
        raise DataError(
            f"model.sequence_length is {model.length}, longer than the {steps} steps of a series of {dataset.name}; "
            f"take {steps} or less"
        )
    if steps % model.length:
        raise DataError(
            f"model.sequence_length is {model.length}, which does not divide the {steps} steps of a series of "
            f"{dataset.name}; every window is expected to be as long"
        )

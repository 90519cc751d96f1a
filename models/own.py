"""Networks and data sets of the user's own: a study names them as `package.module:function`."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, Self

import torch
from pydantic import ConfigDict, model_validator
from torch import nn

from models.config import DataConfig, ModelConfig
from models.data.dataset import Dataset
from models.data.errors import DataError
from models.data.samples import Samples, TensorSamples
from models.data.signature import VIEWS, Signature
from models.spelling import nearest
from models.tasks import Classification, Task


def is_own(kind: Any) -> bool:
    """Whether a kind names code of the user's own."""
    return isinstance(kind, str) and ":" in kind


def find_function(given: str) -> Callable[..., Any]:
    """Import `package.module:function`; the current folder is put on the path that modules are found on.

    Raises:
        ValueError: there is no such function, or its module fails.
    """
    module, name = _module_of(given, "package.module:function, such as nets:make for the function make in nets.py")
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        defined = f"its functions are {', '.join(functions)}" if functions else "it defines no functions"
        raise ValueError(f"{module.__name__} has no function {name!r}; {defined}{nearest(name, functions)}")
    return function


def find_class(given: str) -> type:
    """Import `package.module:Class`; the current folder is put on the path that modules are found on.

    Raises:
        ValueError: there is no such class, or its module fails.
    """
    module, name = _module_of(given, "package.module:Class, such as methods:Sign for the class Sign in methods.py")
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
        ]
        defined = f"its classes are {', '.join(classes)}" if classes else "it defines no classes"
        raise ValueError(f"{module.__name__} has no class {name!r}; {defined}{nearest(name, classes)}")
    return found


def call_own(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call the user's function.

    Raises:
        DataError: as the function raised it.
        ValueError: it raised something else; the message names the line.
    """
    try:
        return function(*arguments, **settings)
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is told as their mistake
        name = getattr(function, "__name__", repr(function))
        raise ValueError(f"{name}() raised {_first_line(error)}{_place(error, function)}; mend it first") from error


def _module_of(given: str, allowed: str) -> tuple[ModuleType, str]:
    """Import the module of `package.module:name`; returns it and the name."""
    module_name, _, name = given.partition(":")
    if not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"allowed is {allowed}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return _import(module_name), name


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"found no module {error.name!r} in {os.getcwd()} or installed; run gradrank in the folder "
                "that holds it"
            ) from error
        raise ValueError(f"importing {name} raised {_first_line(error)}; mend it first") from error


def _first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def _place(error: BaseException, function: Callable[..., Any]) -> str:
    """The last line of the function's own module that led to the error."""
    file = getattr(sys.modules.get(getattr(function, "__module__", "")), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (line {lines[-1]} of {os.path.basename(str(file))})" if lines else ""


class OwnModel(ModelConfig):
    """A network that a function makes: called with the `Signature` and the study's settings, it gives a module.

    The settings are the function's keyword arguments; those called `bottleneck`, `sequence_length` and `alpha`
    are compared between cells as those of built-in networks are.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="after")
    def _known_settings(self) -> Self:
        _check_settings(self.kind, self.model_extra or {})
        for key in ("bottleneck", "alpha"):
            value = self._setting(key)
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{key} is {value!r}; a number is expected, since cells are compared by it")
        length = self._setting("sequence_length")
        if length is not None and (not isinstance(length, int) or length < 1):
            raise ValueError(f"sequence_length is {length!r}; a whole number, 1 or more, is expected")
        return self

    def _setting(self, key: str) -> Any:
        """A setting of the study, else the function's default; None where there is neither."""
        extra = self.model_extra or {}
        if key in extra:
            return extra[key]
        parameter = _parameters(find_function(self.kind)).get(key)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    @property
    def length(self) -> int | None:
        length: int | None = self._setting("sequence_length")
        return length

    @property
    def knobs(self) -> dict[str, float]:
        absent = {"bottleneck": 0.0, "sequence_length": 1.0, "alpha": 1.0}
        given = {key: self._setting(key) for key in absent}
        return {key: absent[key] if value is None else float(value) for key, value in given.items()}

    def build(self, signature: Signature) -> nn.Module:
        network = call_own(find_function(self.kind), signature, **(self.model_extra or {}))
        if not isinstance(network, nn.Module):
            raise ValueError(f"model {self.kind} gave {type(network).__name__}; a torch.nn.Module is expected")
        return network


class OwnData(DataConfig):
    """A data set that a function loads: called with the fold and the study's settings, it gives a `Dataset`.

    A function with an argument `length` is given the network's `sequence_length` by it.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="after")
    def _known_settings(self) -> Self:
        _check_settings(self.kind, dict(self.model_extra or {}), told=("length",))
        return self

    def load(self, fold: int, length: int | None = None) -> Dataset:
        function = find_function(self.kind)
        settings = dict(self.model_extra or {})
        if "length" in _parameters(function):
            settings["length"] = length
        dataset = call_own(function, fold, **settings)
        if not isinstance(dataset, Dataset):
            raise DataError(f"data {self.kind} gave {type(dataset).__name__}; a models.Dataset is expected")
        _check_dataset(dataset, f"data {self.kind}")
        return dataset


def _check_dataset(dataset: Dataset, told: str) -> None:
    """Refuse a data set whose parts contradict each other, before workers fail on it.

    Raises:
        DataError: they do.
    """
    parts: dict[str, type] = {"task": Task, "signature": Signature, "train": Samples, "test": Samples}
    for name, expected in parts.items():
        part = getattr(dataset, name)
        if not isinstance(part, expected):
            raise DataError(
                f"{told} gave {name} of type {type(part).__name__}; a models.{expected.__name__} is expected"
            )
    if not isinstance(getattr(dataset.task, "metric", None), str):
        raise DataError(f"{told} gave the task {type(dataset.task).__name__} without metric; a name is expected")
    kind = dataset.signature.kind
    if kind not in VIEWS:
        raise DataError(f"{told} gave signature.kind {kind!r}; allowed are {', '.join(VIEWS)}{nearest(kind, VIEWS)}")
    for samples, name in ((dataset.train, "training"), (dataset.test, "held-out")):
        if not len(samples):
            raise DataError(f"{told} gave no {name} samples; one or more is expected")
        _check_inputs(samples, dataset.signature, f"{told} gave {name}")
        if isinstance(dataset.task, Classification):
            _check_classes(samples.labels, dataset.signature.outputs, f"{told} gave {name}")


def _check_inputs(samples: Samples, signature: Signature, told: str) -> None:
    """Look at the first sample, and at all tokens where they are in memory."""
    first = call_own(samples.take, torch.zeros(1, dtype=torch.long)).inputs[0]
    shape = tuple(first.shape[1:])
    if shape != tuple(signature.shape):
        raise DataError(f"{told} samples of shape {shape}; its signature says {tuple(signature.shape)}")
    if signature.kind in ("tokens", "pairs"):
        ids = samples.inputs if isinstance(samples, TensorSamples) else first
        if ids.is_floating_point() or not 0 <= ids.min() <= ids.max() < signature.vocabulary:
            raise DataError(
                f"{told} tokens {ids.min().item()} to {ids.max().item()}; whole numbers from 0 to "
                f"{signature.vocabulary - 1} are expected, by its signature's vocabulary"
            )
    elif not first.is_floating_point():
        raise DataError(f"{told} inputs of {first.dtype}; floating-point numbers are expected")


def _check_classes(labels: torch.Tensor | None, outputs: int, told: str) -> None:
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise DataError(f"{told} classes of {labels.dtype}; torch.int64 is expected")
    if not 0 <= labels.min() <= labels.max() < outputs:
        raise DataError(
            f"{told} classes {labels.min().item()} to {labels.max().item()}; 0 to {outputs - 1} are expected, by its "
            "signature's outputs"
        )


def _check_settings(kind: str, settings: Mapping[str, Any], told: Sequence[str] = ()) -> None:
    """Refuse what the function does not take behind its first argument, before anything runs.

    Args:
        kind: the function.
        settings: of the study.
        told: arguments that the study does not set.

    Raises:
        ValueError: a setting is unknown or missing.
    """
    parameters = _parameters(find_function(kind))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in list(parameters)[1:] if name not in told]
    for key in settings:
        if key not in known:
            raise ValueError(
                f"found unknown key {key!r}; the settings of {kind} are {', '.join(known) or 'none'}"
                f"{nearest(key, known)}"
            )
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in settings]
    if missing:
        raise ValueError(f"{kind} takes {', '.join(missing)}, which the study does not set")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)

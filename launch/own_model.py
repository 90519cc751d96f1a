"""Anyone's network for `gradrank bound`: what a function `package.module:function` gives."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from launch.errors import UserError, first_line
from launch.kinds import nearest


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: isinstance(value, nn.Module), "a torch.nn.Module"),
    "args": (_is_list, "a tuple of the network's inputs, such as (x,)"),
    "kwargs": (lambda value: isinstance(value, Mapping), "a dict of keyword inputs"),
    "loss": (callable, "a function loss(output, *targets)"),
    "targets": (_is_list, "a tuple of targets, such as (y,)"),
    "input_rank": (_is_count, "a whole number, 1 or more"),
    "distinct_tokens": (_is_count, "a whole number, 1 or more"),
    "training": (lambda value: isinstance(value, bool), "True or False"),
}
"""What the function gives: each field's test, and what is allowed in words. The first two are required."""

REQUIRED = ("model", "args")


def load_own_model(given: str) -> dict[str, Any]:
    """Call the function and check what it gives; its fields are arguments of `rank_bounds`.

    The current folder is put on the path that modules are found on.

    Raises:
        UserError: there is no such function, it fails, or gives something else.
    """
    where = f"--model {given}"
    module_name, _, name = given.partition(":")
    if not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(
            f"{where}: allowed is package.module:function, such as nets:make for the function make in nets.py"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(module_name, where)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        defined = f"its functions are {', '.join(functions)}" if functions else "it defines no functions"
        raise UserError(f"{where}: {module_name} has no function {name!r}; {defined}{nearest(name, functions)}")
    try:
        result = function()
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is told as their mistake
        raise UserError(
            f"{where}: {name}() raised {first_line(error)}{_place(error, module)}; mend it first"
        ) from error
    return _checked(result, f"{where}: {name}()")


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{where}: found no module {error.name!r} in {os.getcwd()} or installed; run gradrank in the folder "
                "that holds it"
            ) from error
        raise UserError(f"{where}: importing {name} raised {first_line(error)}; mend it first") from error


def _place(error: BaseException, module: ModuleType) -> str:
    """The last line of the module itself that led to the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__]
    return f" (line {lines[-1]} of {os.path.basename(str(module.__file__))})" if lines else ""


def _checked(result: Any, where: str) -> dict[str, Any]:
    names = ", ".join(FIELDS)
    if isinstance(result, Mapping):
        for key in result:
            if key not in FIELDS:
                raise UserError(f"{where} gave unknown key {key!r}; allowed are {names}{nearest(str(key), FIELDS)}")
        found = dict(result)
    else:
        found = {key: getattr(result, key) for key in FIELDS if hasattr(result, key)}
    found = {key: value for key, value in found.items() if value is not None}
    for key in REQUIRED:
        if key not in found:
            raise UserError(
                f"{where} gave {type(result).__name__} without {key!r}; allowed is a dict or an object with model, "
                f"args, and optionally {', '.join(list(FIELDS)[len(REQUIRED) :])}"
            )
    for key, value in found.items():
        test, allowed = FIELDS[key]
        if not test(value):
            raise UserError(f"{where} gave {key} of type {type(value).__name__}; allowed is {allowed}")
    return found

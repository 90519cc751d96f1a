"""Anyone's network for `gradrank bound`: what a function `package.module:function` gives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from launch.errors import UserError
from models.own import call_own, find_function
from models.spelling import nearest


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
    try:
        function = find_function(given)
        result = call_own(function)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    return _checked(result, f"{where}: {given.rpartition(':')[2]}()")


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

"""From a study file and overrides to validated cells; mistakes are told with their key's path."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from launch.config import CellConfig, StudyConfig
from launch.errors import UserError
from launch.explain import explain
from models.spelling import nearest

T = TypeVar("T", bound=BaseModel)

TOLD_BY_PARAMS = {
    "compressor",
    "policy",
    "model.alpha",
    "model.bottleneck",
    "cluster.workers",
    "train.seed",
    "train.fold",
}
"""Swept keys that a cell's params tell by themselves."""


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        index: its number in the study.
        name: what the sweep set, in words; tells it from the others.
        setting: the part of the name that no param of its own tells.
        config: all settings.
    """

    index: int
    name: str
    setting: str
    config: CellConfig


@dataclass(frozen=True)
class Study:
    """A study whose every cell is valid.

    Attributes:
        path: of its file.
        values: of the file, with overrides, as plain values.
        config: name, tracking, sweep.
        cells: one or more.
    """

    path: Path
    values: dict[str, Any]
    config: StudyConfig
    cells: tuple[Cell, ...]


def read_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply overrides, expand the sweep and validate all cells.

    Args:
        path: of the YAML file.
        overrides: `a.b=value` each, the value in YAML.

    Raises:
        UserError: anything wrong, with the key's path, what was found and what is allowed.
    """
    values = _read_yaml(path)
    for override in overrides:
        key, value = parse_override(override)
        _override(values, key, value)
    if values.get("sweep") is None:
        values.pop("sweep", None)
    known = [*StudyConfig.model_fields, *CellConfig.model_fields]
    for key in values:
        if key not in known:
            raise UserError(
                f"{path}: {key}: found unknown key {key!r}; allowed keys are {', '.join(known)}"
                f"{nearest(str(key), known)}"
            )
    study_values = {key: value for key, value in values.items() if key in StudyConfig.model_fields}
    config = _validate(StudyConfig, study_values, str(path))
    cells = tuple(_cells(values, config, str(path)))
    addresses = {cell.config.cluster.address for cell in cells}
    if len(addresses) > 1:
        raise UserError(
            f"{path}: sweep.cluster.address: found {len(addresses)} addresses; allowed is one cluster for a study"
        )
    return Study(path, values, config, cells)


def single_cell(values: dict[str, Any], overrides: Sequence[str] = ()) -> Cell:
    """Make one cell of settings that no file holds.

    Raises:
        UserError: anything wrong, with the key's path.
    """
    for override in overrides:
        set_key(values, *parse_override(override))
    return Cell(0, _short(values["model"]), "", _validate(CellConfig, values, "settings"))


def parse_override(override: str) -> tuple[str, Any]:
    """Split `a.b=value`.

    Raises:
        UserError: there is no key, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override!r}: allowed is key=value, such as model.bottleneck=8")
    try:
        return key.strip(), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: {text!r} is not YAML: {_first_line(error)}") from error


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings.

    A name such as `policy: bound` opens into `{kind: bound}`; setting another `kind` drops the old
    kind's settings.
    """
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        if isinstance(inner, str):
            inner = {"kind": inner}
        if not isinstance(inner, dict):
            inner = {}
        values[parent] = inner
        values = inner
    if last == "kind" and values.get("kind") != value:
        values.clear()
    values[last] = value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; give the path of a study file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: broken YAML: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: found {type(values).__name__}; allowed is a mapping with name, model, data, …")
    return values


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one key; a key that the sweep varies is taken out of the sweep."""
    sweep = values.get("sweep")
    if key.startswith("sweep."):
        if not isinstance(sweep, dict):
            sweep = values["sweep"] = {}
        sweep[key.removeprefix("sweep.")] = value
        return
    if isinstance(sweep, dict):
        for swept in list(sweep):
            keys = _split_keys(str(swept))
            together = key in keys and len(keys) > 1
            if together or any(key.startswith(f"{whole}.") for whole in keys):
                raise UserError(
                    f"--set {key}: the study's sweep of {swept!r} would override it; set the whole list instead: "
                    f"--set 'sweep.{swept}=[…]'"
                )
            if key in keys:
                del sweep[swept]
    set_key(values, key, value)


def _split_keys(swept: str) -> list[str]:
    return [key.strip() for key in swept.split(",")]


def _cells(values: dict[str, Any], config: StudyConfig, where: str) -> Iterator[Cell]:
    base = {key: value for key, value in values.items() if key in CellConfig.model_fields}
    for index, updates in enumerate(_combinations(config.sweep, where)):
        cell = deepcopy(base)
        for key, value in updates.items():
            root = key.split(".")[0]
            if root not in CellConfig.model_fields:
                raise UserError(
                    f"{where}: sweep.{key}: found unknown key {root!r}; allowed are keys under "
                    f"{', '.join(CellConfig.model_fields)}{nearest(root, CellConfig.model_fields)}"
                )
            set_key(cell, key, deepcopy(value))
        label = _label(updates)
        setting = _label({key: value for key, value in updates.items() if key not in TOLD_BY_PARAMS})
        told = f"{where}: cell {index + 1} ({label})" if label else where
        yield Cell(index, label or config.name, setting, _validate(CellConfig, cell, told))


def _combinations(sweep: Mapping[str, list[Any]], where: str) -> Iterator[dict[str, Any]]:
    """The product of the sweep's lists; keys joined by commas vary together."""
    axes: list[list[dict[str, Any]]] = []
    for swept, choices in sweep.items():
        keys = _split_keys(swept)
        if not choices:
            raise UserError(f"{where}: sweep.{swept}: found an empty list; allowed is one value or more")
        axis = []
        for number, choice in enumerate(choices):
            group = [choice] if len(keys) == 1 else choice
            if not isinstance(group, list) or len(group) != len(keys):
                raise UserError(
                    f"{where}: sweep.{swept}[{number}]: found {choice!r}; allowed is a list of {len(keys)} values, "
                    f"for {', '.join(keys)}"
                )
            axis.append(dict(zip(keys, group, strict=True)))
        axes.append(axis)
    for combination in itertools.product(*axes):
        yield {key: value for part in combination for key, value in part.items()}


def _label(updates: Mapping[str, Any]) -> str:
    return " ".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in updates.items())


def _short(value: Any) -> str:
    """A setting in a few letters, for names."""
    if isinstance(value, dict):
        rest = ",".join(f"{key}={_short(inner)}" for key, inner in value.items() if key != "kind")
        return f"{value.get('kind', '')}({rest})" if rest else str(value.get("kind", ""))
    if isinstance(value, list):
        return "+".join(_short(item) for item in value)
    return str(value)


def _validate(kind: type[T], values: dict[str, Any], where: str) -> T:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        messages = [explain(kind, values, item) for item in error.errors(include_url=False)]
        raise UserError("\n".join(f"{where}: {message}" for message in dict.fromkeys(messages))) from error

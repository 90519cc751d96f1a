"""A validation error in one line: the key's path, what was found, what is allowed, the nearest right spelling."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from launch.kinds import OneOf
from models.spelling import nearest


def explain(kind: type[BaseModel], values: Mapping[str, Any], error: ErrorDetails) -> str:
    """Put one error of validating `values` as `kind` into words."""
    path, owner = _locate(kind, values, error["loc"])
    told = f"{path}: " if path else ""
    if error["type"] == "extra_forbidden":
        key, allowed = str(error["loc"][-1]), list(owner.model_fields) if owner else []
        return f"{told}found unknown key {key!r}; allowed keys are {', '.join(allowed)}{nearest(key, allowed)}"
    if error["type"] == "missing":
        return f"{told}is missing; it has no default"
    if error["type"] == "kind":
        return told + error["msg"]
    if error["type"] == "value_error":
        return told + error["msg"].removeprefix("Value error, ")
    found = f"{told}found {error['input']!r}; "
    if error["type"] == "literal_error":
        expected = str(error.get("ctx", {})["expected"])
        words = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
        return f"{found}allowed is {expected}{nearest(str(error['input']), words)}"
    return found + error["msg"].replace("Input should be", "allowed is").replace("String should", "the text should")


def _locate(kind: type[BaseModel], values: Any, location: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """The dotted path of a location, free of what unions put in, and the settings that own its last key."""
    path: list[str] = []
    here: type[BaseModel] | OneOf | None = kind
    owner: type[BaseModel] | None = kind
    for part in location:
        if isinstance(part, int):
            if isinstance(values, list):
                path.append(f"[{part}]")
                values = values[part]
            continue
        if isinstance(here, OneOf):
            here = here.chosen(part)
            continue
        if here is None and not (isinstance(values, Mapping) and part in values):
            continue  # names one of the types that a plain value may have
        owner = here
        path.append(f".{part}")
        values = values.get(part) if isinstance(values, Mapping) else None
        here = _field(here, part)
    return "".join(path).removeprefix("."), owner


def _field(owner: type[BaseModel] | None, name: str) -> type[BaseModel] | OneOf | None:
    """What a field holds: settings, one of several kinds, or a plain value (None)."""
    field = owner.model_fields.get(name) if owner is not None else None
    if field is None:
        return None
    for item in field.metadata:
        if isinstance(item, OneOf):
            return item
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

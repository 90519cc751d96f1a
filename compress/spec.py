"""Names and mappings of a study file, read into compressors and policies."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Spec(BaseModel):
    """A frozen, typed setting with a `kind`; unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    kind: str


S = TypeVar("S", bound=Spec)


def parse(spec: str | Mapping[str, Any] | S, kinds: Mapping[str, type[S]], base: type[Any], what: str) -> S:
    """Read a name, a mapping with a `kind`, or an object that is one already.

    Raises:
        ValueError: the kind is unknown, or a field is unknown or of the wrong type.
    """
    if isinstance(spec, base):
        return cast(S, spec)
    if not isinstance(spec, (str, Mapping)):
        raise ValueError(f"{what} is {spec!r}; it must be a name, a mapping with a kind, or a {base.__name__}")
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = str(fields.get("kind"))
    if kind not in kinds:
        near = difflib.get_close_matches(kind, kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{what} {kind!r} is unknown; known are {', '.join(sorted(kinds))}{hint}")
    try:
        return kinds[kind].model_validate(fields)
    except ValidationError as error:
        details = "; ".join(_told(item) for item in error.errors())
        allowed = ", ".join(kinds[kind].model_fields)
        raise ValueError(f"{what} {kind!r}: {details} (fields: {allowed})") from error


def _told(error: ErrorDetails) -> str:
    path = ".".join(str(part) for part in error["loc"])  # empty where fields contradict each other
    return f"{path}: {error['msg']}" if path else error["msg"].removeprefix("Value error, ")

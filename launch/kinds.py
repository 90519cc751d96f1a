"""Fields of a study that are one of several kinds, told apart by `kind`."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class OneOf:
    """Annotates a field as a union discriminated on `kind`; a bare name stands for `{kind: name}`.

    With `several` the field is a tuple of them, and one alone stands for a tuple of one.
    """

    def __init__(self, kinds: Mapping[str, type[BaseModel]], what: str, *, several: bool = False) -> None:
        self.kinds = kinds
        self.what = what
        self.several = several

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(chosen) for kind, chosen in self.kinds.items()}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        one = core_schema.no_info_before_validator_function(self._named, union)
        if not self.several:
            return one
        many = core_schema.tuple_variable_schema(one)
        return core_schema.no_info_before_validator_function(_listed, many)

    def _named(self, value: Any) -> Any:
        if isinstance(value, tuple(self.kinds.values())):
            return value
        fields = {"kind": value} if isinstance(value, str) else value
        if not isinstance(fields, Mapping):
            raise PydanticCustomError(
                "kind", "found {found}; allowed is a name or a mapping with a kind", {"found": repr(value)}
            )
        kind = fields.get("kind")
        if kind not in self.kinds:
            raise PydanticCustomError(
                "kind",
                "found {found}; allowed {what} kinds are {allowed}{hint}",
                {
                    "found": repr(kind) if "kind" in fields else "no kind",
                    "what": self.what,
                    "allowed": ", ".join(sorted(self.kinds)),
                    "hint": nearest(str(kind), self.kinds),
                },
            )
        return fields


def _listed(value: Any) -> Any:
    if value in ([], ()):
        raise PydanticCustomError("kind", "found an empty list; allowed is one or more")
    return value if isinstance(value, (list, tuple)) else [value]


def nearest(word: str, allowed: Any) -> str:
    """A hint at the nearest right spelling, or nothing."""
    near = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""

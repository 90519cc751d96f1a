"""Fields of a study that are one of several kinds, told apart by `kind`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from models.own import is_own
from models.spelling import nearest


class OneOf:
    """Annotates a field as a union discriminated on `kind`; a bare name stands for `{kind: name}`.

    With `several` the field is a tuple of them, and one alone stands for a tuple of one. With `own`, a kind
    that is `spelt` with a colon is code of the user's own, and these settings take it.
    """

    def __init__(
        self,
        kinds: Mapping[str, type[BaseModel]],
        what: str,
        *,
        several: bool = False,
        own: type[BaseModel] | None = None,
        spelt: str = "package.module:function",
    ) -> None:
        self.kinds = kinds
        self.what = what
        self.several = several
        self.own = own
        self.spelt = spelt

    def chosen(self, kind: Any) -> type[BaseModel] | None:
        """The settings that a kind has, None where it is unknown."""
        if self.own is not None and is_own(kind):
            return self.own
        return self.kinds.get(kind) if isinstance(kind, str) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(chosen) for kind, chosen in self.kinds.items()}
        if self.own is not None:
            choices[self.spelt] = handler.generate_schema(self.own)
        union = core_schema.tagged_union_schema(choices, discriminator=self._discriminated)
        one = core_schema.no_info_before_validator_function(self._named, union)
        if not self.several:
            return one
        many = core_schema.tuple_variable_schema(one)
        return core_schema.no_info_before_validator_function(_listed, many)

    def _discriminated(self, value: Any) -> Any:
        kind = value["kind"] if isinstance(value, Mapping) else value.kind
        return self.spelt if self.own is not None and is_own(kind) else kind

    def _named(self, value: Any) -> Any:
        allowed = tuple(self.kinds.values()) if self.own is None else (*self.kinds.values(), self.own)
        if isinstance(value, allowed):
            return value
        fields = {"kind": value} if isinstance(value, str) else value
        if not isinstance(fields, Mapping):
            raise PydanticCustomError(
                "kind", "found {found}; allowed is a name or a mapping with a kind", {"found": repr(value)}
            )
        kind = fields.get("kind")
        if self.chosen(kind) is None:
            raise PydanticCustomError(
                "kind",
                "found {found}; allowed {what} kinds are {allowed}{hint}",
                {
                    "found": repr(kind) if "kind" in fields else "no kind",
                    "what": self.what,
                    "allowed": ", ".join([*sorted(self.kinds), *([self.spelt] if self.own else [])]),
                    "hint": nearest(str(kind), self.kinds),
                },
            )
        return fields


def _listed(value: Any) -> Any:
    if value in ([], ()):
        raise PydanticCustomError("kind", "found an empty list; allowed is one or more")
    return value if isinstance(value, (list, tuple)) else [value]

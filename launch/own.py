"""Compressors and policies of the user's own: a study names their class as `package.module:Class`."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from compress import Compressor, Policy
from compress.spec import Spec, parse
from models.own import find_class


class OwnSpec(BaseModel):
    """Settings whose class `kind` names; all others are fields of that class."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="allow")

    base: ClassVar[type[Spec]]
    """What the class must be derived from."""

    what: ClassVar[str]
    """The base in a word."""

    kind: str

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self.build()
        return self

    def build(self) -> Any:
        """Make the object.

        Raises:
            ValueError: there is no such class, it is derived from something else, or refuses a setting.
        """
        chosen = find_class(self.kind)
        if not issubclass(chosen, self.base):
            raise ValueError(f"{self.kind} is no {self.what}; derive it from compress.{self.base.__name__}")
        default = chosen.model_fields["kind"].default
        kind = default if isinstance(default, str) else self.kind  # the class's own name for itself
        try:
            return parse({"kind": kind, **(self.model_extra or {})}, {kind: chosen}, self.base, self.what)
        except TypeError as error:  # an abstract method is missing
            raise ValueError(f"{self.kind}: {error}") from error


class OwnCompressor(OwnSpec):
    """A compressor of the user's own."""

    base = Compressor
    what = "compressor"

    def build(self) -> Compressor:
        built: Compressor = super().build()
        return built


class OwnPolicy(OwnSpec):
    """A policy of the user's own."""

    base = Policy
    what = "policy"

    def build(self) -> Policy:
        built: Policy = super().build()
        return built

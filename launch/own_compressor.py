"""A compressor of the user's own: a study names its class as `package.module:Class`."""

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator

from compress import Compressor
from compress.spec import parse
from models.own import find_class


class OwnCompressor(BaseModel):
    """A compressor whose class `kind` names; the other settings are fields of that class."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="allow")

    kind: str

    @model_validator(mode="after")
    def _valid(self) -> Self:
        self.build()
        return self

    def build(self) -> Compressor:
        """Make the compressor.

        Raises:
            ValueError: there is no such class, it is no compressor, or refuses a setting.
        """
        chosen = find_class(self.kind)
        if not issubclass(chosen, Compressor):
            raise ValueError(f"{self.kind} is no compressor; derive it from compress.Compressor")
        default = chosen.model_fields["kind"].default
        kind = default if isinstance(default, str) else self.kind  # the class's own name for itself
        try:
            return parse({"kind": kind, **(self.model_extra or {})}, {kind: chosen}, Compressor, "compressor")
        except TypeError as error:  # fit or rounds is missing
            raise ValueError(f"{self.kind}: {error}") from error

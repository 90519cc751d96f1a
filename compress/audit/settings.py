"""How often to audit, and how thoroughly."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """When and how to audit.

    Attributes:
        every: audit step 0 and every so many steps after it; 0 for never.
        activations: measure the rank of each layer's inputs A and adjoints Δ too, of one worker's rows.
        full_spectrum: find all singular values, whatever it costs; else large matrices are sketched.
        on_violation: what follows where a measured rank exceeds its bound: a warning, or the end of training.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    every: Annotated[int, Field(ge=0)] = 50
    activations: bool = False
    full_spectrum: bool = False
    on_violation: Literal["warn", "fail"] = "warn"

    def is_due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

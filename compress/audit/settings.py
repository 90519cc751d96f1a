"""How often to audit, and how thoroughly."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AuditSettings(BaseModel):
    """When and how to audit.

    Attributes:
        every: audit step 0 and every so many steps after it; 0 for never.
        revise_every: adaptive policies see the audits of every so many steps alone, so that the others check what was
            decided; None shows them all. A multiple of `every`.
        activations: measure the rank of each layer's inputs A and adjoints Δ too, of one worker's rows.
        full_spectrum: find all singular values, whatever it costs; else large matrices are sketched.
        keep: audited steps whose rows are kept, the newest: each matrix takes kilobytes. `on_audit` is given all.
        on_violation: what follows where a measured rank exceeds its bound: a warning, or the end of training.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    every: Annotated[int, Field(ge=0)] = 50
    revise_every: Annotated[int, Field(ge=1)] | None = None
    activations: bool = False
    full_spectrum: bool = False
    keep: Annotated[int, Field(ge=1)] = 100
    on_violation: Literal["warn", "fail"] = "warn"

    @model_validator(mode="after")
    def _multiple(self) -> Self:
        if self.revise_every is not None and (not self.every or self.revise_every % self.every):
            raise ValueError(
                f"audit.revise_every is {self.revise_every} and audit.every is {self.every}; give a multiple of it"
            )
        return self

    def is_due(self, step: int) -> bool:
        """Whether the step is audited."""
        return self.every > 0 and step % self.every == 0

    def is_shown(self, step: int) -> bool:
        """Whether policies see the audit of this step."""
        return self.is_due(step) and (self.revise_every is None or step % self.revise_every == 0)

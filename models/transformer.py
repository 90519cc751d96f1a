"""BERT and XLM by their knobs."""

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from torch import nn

from models.config import Count, ModelConfig, Slope
from models.data.signature import Kind, Signature


class Size(NamedTuple):
    """Layers, width of the hidden state, and attention heads; feed-forward layers are four times as wide."""

    layers: int
    hidden: int
    heads: int


SIZES = {
    "tiny": Size(2, 128, 2),
    "mini": Size(4, 256, 4),
    "small": Size(4, 512, 8),
    "medium": Size(8, 512, 8),
    "base": Size(12, 768, 12),
}
"""Of Turc et al. 2019 (arXiv 1908.08962)."""


class TransformerConfig(ModelConfig):
    """A transformer that reads text both ways.

    Attributes:
        size: tiny, mini, small, medium or base.
        layers, hidden, heads: instead of the size's.
        sequence_length: tokens of a piece of text, or of a pair of sentences.
        alpha: slope of Leaky-ReLUs in the feed-forward layers; None for GELU.
        dropout: of hidden states and attention. Where it is above 0, spaces are full and bounds with them.
    """

    size: Literal["tiny", "mini", "small", "medium", "base"] = "tiny"
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None
    sequence_length: Annotated[int, Field(ge=2)] = 64
    alpha: Slope | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def sizes(self) -> Size:
        """What the network has."""
        named = SIZES[self.size]
        return Size(self.layers or named.layers, self.hidden or named.hidden, self.heads or named.heads)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.sizes.hidden % self.sizes.heads:
            raise ValueError(f"hidden is {self.sizes.hidden}, which {self.sizes.heads} heads cannot share evenly")
        return self

    @property
    def length(self) -> int:
        return self.sequence_length

    @property
    def knobs(self) -> dict[str, float]:
        # GELU, as ReLU, is far from linear.
        return {"bottleneck": self.sizes.hidden, "sequence_length": self.sequence_length, "alpha": self.alpha or 0.0}


class BERT(TransformerConfig):
    """Masked language modelling of pieces of text (Devlin et al. 2019)."""

    kind: Literal["bert"] = "bert"
    takes: ClassVar[tuple[Kind, ...]] = ("tokens",)

    def build(self, signature: Signature) -> nn.Module:
        if signature.ahead:
            raise ValueError(
                "bert reads text both ways, so it would see the next tokens that data.objective asks for; take masked"
            )
        # Not before it is needed: importing transformers takes seconds.
        from models.transformer_networks import make_bert

        return make_bert(self.sizes, signature.vocabulary, self.sequence_length, self.alpha, self.dropout)


class XLM(TransformerConfig):
    """Masked language modelling of sentences beside their translations (Lample and Conneau 2019)."""

    kind: Literal["xlm"] = "xlm"
    takes: ClassVar[tuple[Kind, ...]] = ("pairs",)

    def build(self, signature: Signature) -> nn.Module:
        from models.transformer_networks import make_xlm

        languages = signature.languages
        return make_xlm(self.sizes, signature.vocabulary, languages, self.sequence_length, self.alpha, self.dropout)

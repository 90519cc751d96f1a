"""BERT and XLM, made by `transformers` from a configuration, with random weights."""

from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, XLMConfig, XLMWithLMHeadModel
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.xlm.modeling_xlm import TransformerFFN

from models.data.text import PAD
from models.transformer import Size


def make_bert(size: Size, vocabulary: int, length: int, alpha: float | None, dropout: float) -> "MaskedBERT":
    """BERT with a head over the vocabulary, tied to the embedding; see `models.BERT`."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=PAD,
    )
    network = MaskedBERT(config)
    if alpha is not None:
        for module in network.modules():
            if isinstance(module, BertLayer):
                module.intermediate.intermediate_act_fn = _activation(alpha)
    return network


def make_xlm(
    size: Size, vocabulary: int, languages: int, length: int, alpha: float | None, dropout: float
) -> "TranslationXLM":
    """XLM with a head over the vocabulary, tied to the embedding; see `models.XLM`."""
    config = XLMConfig(
        vocab_size=vocabulary,
        emb_dim=size.hidden,
        n_layers=size.layers,
        n_heads=size.heads,
        max_position_embeddings=length,
        n_langs=languages,
        dropout=dropout,
        attention_dropout=dropout,
        pad_token_id=PAD,
    )
    network = TranslationXLM(config)
    if alpha is not None:
        for module in network.modules():
            if isinstance(module, TransformerFFN):
                module.act = _activation(alpha)
    return network


class MaskedBERT(BertForMaskedLM):  # type: ignore[no-untyped-call]
    """BERT that takes ids, samples × positions, and gives logits, samples × positions × vocabulary."""

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = super().forward(input_ids=ids).logits
        return logits


class TranslationXLM(XLMWithLMHeadModel):  # type: ignore[no-untyped-call]
    """XLM that takes ids, attention mask, languages and positions, each samples × positions, and gives logits."""

    def forward(self, ids: Tensor, attention: Tensor, languages: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = (
            super().forward(input_ids=ids, attention_mask=attention, langs=languages, position_ids=positions).logits
        )
        return logits


def _activation(alpha: float) -> nn.Module:
    return nn.Identity() if alpha == 1 else nn.LeakyReLU(alpha)

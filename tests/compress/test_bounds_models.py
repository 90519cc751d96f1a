"""Networks in common use, built small from their configs: every op has a rule, no measured rank exceeds its bound."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measured import gradients
from recurrent import Elman
from torch import Tensor, nn

from compress import rank_bounds

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
TOKENS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
LABELLED = {"input_ids": TOKENS, "labels": TOKENS}
IMAGES = {"labels": torch.tensor([1, 2])}


def bert() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.BertConfig(**SMALL, vocab_size=99, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForMaskedLM(config), {**LABELLED, "attention_mask": torch.ones_like(TOKENS)}


def xlm() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.XLMConfig(
        vocab_size=99, emb_dim=16, n_layers=2, n_heads=4, n_langs=2, dropout=0.0, attention_dropout=0.0
    )
    return transformers.XLMWithLMHeadModel(config), {**LABELLED, "langs": torch.zeros_like(TOKENS)}


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    off = {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=4, vocab_size=99, bos_token_id=1, eos_token_id=2, **off
    )
    return transformers.GPT2LMHeadModel(config), {**LABELLED, "use_cache": False}


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**SMALL, vocab_size=99, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), {**LABELLED, "use_cache": False}


def t5() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.T5Config(
        vocab_size=99, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config), {**LABELLED, "use_cache": False}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=5)
    return transformers.ViTForImageClassification(config), {**IMAGES, "pixel_values": normal(2, 3, 16, 16)}


def resnet18() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8, 12, 16], depths=[2, 2, 2, 2], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config), {**IMAGES, "pixel_values": normal(2, 3, 32, 32)}


class WithLoss(nn.Module):
    """A network and squared error, or cross-entropy over ten classes."""

    def __init__(self, net: nn.Module, first: bool = False) -> None:
        super().__init__()
        self.net, self.first = net, first

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        found = self.net(x)[0] if self.first else self.net(x)
        loss = F.mse_loss(found, labels) if labels.is_floating_point() else F.cross_entropy(found, labels)
        return {"loss": loss}


def vgg11() -> tuple[nn.Module, dict[str, Any]]:
    layers: list[nn.Module] = []
    channels = 3
    for width in (4, "pool", 8, "pool", 12, 12, "pool", 16, 16, "pool", 16, 16, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    layers += [
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Dropout(0.0),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    ]
    return WithLoss(nn.Sequential(*layers)), {"x": normal(3, 3, 32, 32), "labels": torch.tensor([1, 5, 9])}


def sequence(net: nn.Module, width: int, first: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    return WithLoss(net, first), {"x": normal(1, 5, 12), "labels": normal(1, 5, width)}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "BERT": bert,
    "XLM": xlm,
    "GPT-2": gpt2,
    "Llama": llama,
    "T5": t5,
    "ViT": vit,
    "ResNet-18": resnet18,
    "VGG-11": vgg11,
    "Elman": lambda: sequence(Elman([12, 16, 2, 16], bias=True, activation=torch.tanh, last=False), 16, first=False),
    "RNN": lambda: sequence(nn.RNN(12, 16, num_layers=2, batch_first=True), 16),
    "GRU": lambda: sequence(nn.GRU(12, 8, bidirectional=True, batch_first=True), 16),
    "LSTM": lambda: sequence(nn.LSTM(12, 16, proj_size=6, num_layers=2, batch_first=True), 6),
}

IN_FLOAT32 = ("XLM", "Llama", "T5")
"""Networks that compute softmax or norms in float32, whatever the type of their weights."""


@pytest.mark.parametrize("name", MODELS)
def test_no_op_is_unknown_and_no_rank_exceeds_its_bound(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = MODELS[name]()
        model = model.double().train()
        bounds = rank_bounds(model, (), inputs)
    assert not bounds.unknown_ops
    tolerance = 1e-5 if name in IN_FLOAT32 else 1e-9
    found = gradients(model, [lambda m: m(**inputs)["loss"]])
    assert found.keys() == bounds.keys()
    largest = max(float(gradient.norm()) for gradient in found.values())
    for parameter, gradient in found.items():
        values = torch.linalg.svdvals(gradient)
        measured = int((values > tolerance * max(float(values[0]), 1e-3 * largest)).sum())
        assert measured <= bounds[parameter].rank, (parameter, measured, bounds[parameter])
    below = [bound for bound in bounds.values() if bound.rank < min(bound.shape)]
    assert below, "every bound is full: the network tells nothing"

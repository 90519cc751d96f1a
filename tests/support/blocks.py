"""The pieces that drawn networks consist of (see `architectures`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = Mapping[str, Any]
"""One piece by its `op` and its settings: plain data, so that a network can be printed and built again."""

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x) if self.scale == 1 else x + self.scale * self.inner(x)


class Channels(nn.Module):
    """A module that wants features on axis 1, for features on the last axis."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2) if x.dim() == 3 else self.inner(x)


class Tied(nn.Module):
    """One weight used twice: in a row, under two names, or transposed as the decoder."""

    def __init__(self, wide_in: int, width: int, how: str, bias: bool) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(wide_in, width, bias=bias)
        if how == "alias":
            self.second = nn.Linear(wide_in, width, bias=bias)
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        if self.how == "twice":
            return self.first(y)
        if self.how == "alias":
            return self.second(y)
        return F.linear(y, self.first.weight.t())


class Elman(nn.Module):
    """h_t = φ(U x_t + V h_{t−1}), unrolled; every hidden state comes out."""

    def __init__(self, wide_in: int, width: int, *, bias: bool, tanh: bool, in_place: bool) -> None:
        super().__init__()
        self.inward = nn.Linear(wide_in, width, bias=bias)
        self.hidden = nn.Linear(width, width, bias=False)
        self.tanh, self.in_place = tanh, in_place

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        width = self.hidden.out_features
        found: list[Tensor] = []
        out = x.new_zeros(x.shape[0], x.shape[1], width)
        if self.in_place and state is None:
            state = x.new_zeros(x.shape[0], width)
        for t in range(x.shape[1]):
            step = self.inward(x[:, t])
            state = step if state is None else step + self.hidden(state)
            state = torch.tanh(state) if self.tanh else state
            if self.in_place:
                out[:, t] = state
            found.append(state)
        return out if self.in_place else torch.stack(found, 1)


class Recurrent(nn.Module):
    """PyTorch's own op, from a zero state."""

    def __init__(self, kind: str, wide_in: int, width: int, bias: bool) -> None:
        super().__init__()
        self.net = getattr(nn, kind)(wide_in, width, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)[0]
        return found


class Attention(nn.Module):
    """Written out, or by the fused op; `kv` heads of keys and values are shared by the query heads."""

    def __init__(self, wide_in: int, heads: int, each: int, kv: int, *, bias: bool, fused: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.each, self.fused, self.causal = heads, kv, each, fused, causal
        self.q = nn.Linear(wide_in, heads * each, bias=bias)
        self.k = nn.Linear(wide_in, kv * each, bias=bias)
        self.v = nn.Linear(wide_in, kv * each, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, self.each).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.kv != self.heads)
        else:
            times = self.heads // self.kv
            k, v = (
                y[:, :, None].expand(b, self.kv, times, t, self.each).reshape(b, self.heads, t, self.each)
                for y in (k, v)
            )
            scores = q @ k.transpose(-1, -2) / self.each**0.5
            if self.causal:
                hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(hidden, -torch.inf)
            y = scores.softmax(-1) @ v
        return y.transpose(1, 2).reshape(b, t, self.heads * self.each)


class Mean(nn.Module):
    """Over all positions: of a sequence, or of an image."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) if self.image else x.mean(1)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


EPSILON = 0.1
"""ε of all norms. With one near zero they do not see scale: a gradient along the only direction of an input is ε/σ² of
its factors, not zero, but below any tolerance. Bounds hold for every ε, and are reached where it is seen."""


def _norm(block: Block) -> nn.Module:
    kind, width, affine = block["kind"], block["width"], block["affine"]
    if kind == "layer":
        return nn.LayerNorm(width, eps=EPSILON, elementwise_affine=affine)
    if kind == "rms":
        return nn.RMSNorm(width, eps=EPSILON, elementwise_affine=affine)
    if kind == "group":
        norm: nn.Module = nn.GroupNorm(block["groups"], width, eps=EPSILON, affine=affine)
    else:
        norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[block["dims"]](width, eps=EPSILON, affine=affine)
    return norm if block["dims"] else Channels(norm)


def _convolution(block: Block) -> nn.Module:
    name = ("ConvTranspose" if block["op"] == "transposed" else "Conv") + f"{block['dims']}d"
    settings = {key: block[key] for key in ("stride", "padding", "dilation", "groups", "bias")}
    made: nn.Module = getattr(nn, name)(block["in"], block["out"], block["kernel"], **settings)
    return made


def _elman(block: Block) -> nn.Module:
    settings = {key: block[key] for key in ("bias", "tanh", "in_place")}
    return Elman(block["in"], block["out"], **settings)


def _attention(block: Block) -> nn.Module:
    settings = {key: block[key] for key in ("bias", "fused", "causal")}
    return Attention(block["in"], block["heads"], block["each"], block["kv"], **settings)


def _activation(block: Block) -> nn.Module:
    kind = block["kind"]
    return nn.LeakyReLU(kind) if isinstance(kind, float) else ACTIVATIONS[kind]()


_MAKE = {
    "linear": lambda block: nn.Linear(block["in"], block["out"], bias=block["bias"]),
    "activation": _activation,
    "dropout": lambda block: nn.Dropout(0.0),
    "norm": _norm,
    "residual": lambda block: Residual(sequence(block["blocks"]), block["scale"]),
    "tied": lambda block: Tied(block["in"], block["width"], block["how"], block["bias"]),
    "elman": _elman,
    "recurrent": lambda block: Recurrent(block["kind"], block["in"], block["out"], block["bias"]),
    "attention": _attention,
    "conv": _convolution,
    "transposed": _convolution,
    "average": lambda block: (nn.AvgPool1d, nn.AvgPool2d)[block["dims"] - 1](2),
    "flatten": lambda block: nn.Flatten(),
    "mean": lambda block: Mean(block["image"]),
    "last": lambda block: Last(),
}


def sequence(blocks: Sequence[Block]) -> nn.Sequential:
    return nn.Sequential(*(_MAKE[block["op"]](block) for block in blocks))

"""Networks drawn at random: layers, norms, convolutions, recurrence, attention, tied weights, losses.

`draw` asks a function to pick one of several options, simplest first, so that a random generator and
Hypothesis (which then shrinks) can both drive it. What comes out is plain data: print it, build it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from blocks import Block

Pick = Callable[[Sequence[Any]], Any]
Shape = tuple[int, ...]

WIDTHS = (4, 2, 3, 6, 8, 12, 16)
BATCHES = (24, 1, 2, 3, 5, 12, 20)
LOSSES = ("mse", "cross_entropy", "written_out", "two", "own_input")
NORMS = ("layer", "rms", "batch", "batch in evaluation", "group")
_ESSENTIAL = {
    "mlp": ("linear",),
    "residual": ("residual",),
    **{f"norm: {norm}": ("norm",) for norm in NORMS},
    "convolution": ("conv", "conv", "transposed"),
    "recurrent": ("elman",),
    "attention": ("attention",),
    "tied": ("tied",),
    "mixed": (),
}
KINDS = tuple(_ESSENTIAL)
_FLAT = ("linear", "activation", "dropout")
_MORE = {
    "residual": ("linear", "residual"),
    "convolution": ("conv", "conv", "average", "flatten", "mean"),
    "recurrent": ("elman", "last"),
    "attention": ("attention", "residual", "mean"),
    "tied": ("tied",),
    "mixed": ("residual", "norm", "norm", "conv", "transposed", "average", "elman", "attention", "tied", "flatten")
    + ("mean", "last"),
}
_WEIGHTED = ("linear", "tied", "elman", "recurrent", "attention", "conv", "transposed", "residual")
_MOST_COLUMNS = 250


@dataclass(frozen=True)
class Network:
    """A network, its loss and its batches.

    Attributes:
        shape: of one sample: (width,), (positions, width), (channels, length) or (channels, height, width).
        image: whether features are on axis 1.
        linear: without nonlinear activations; softmax and norms there may be.
        carried: the width of a state that the first recurrent layer is given, or None.
    """

    kind: str
    shape: Shape
    image: bool
    blocks: tuple[Block, ...]
    out: Shape
    loss: str
    batch: int
    workers: int
    accumulation: int
    input_rank: int | None
    training: bool
    linear: bool
    carried: int | None


class _Drawing:
    """The blocks so far, and the shape of a sample behind them."""

    def __init__(self, pick: Pick, kind: str, linear: bool) -> None:
        self.pick, self.kind, self.linear = pick, kind, linear
        self.norms = (kind.removeprefix("norm: "),) if kind.startswith("norm: ") else NORMS
        self.image = kind == "convolution" or (kind == "mixed" and pick([False, False, True]))
        if self.image:
            sizes: tuple[Shape, ...] = ((8,), (5,), (6, 6), (5, 5), (4, 4), (3, 5), (1,))
            self.shape: Shape = (pick((2, 1, 3, 4, 6)), *pick(sizes))
        else:
            sequences = kind in ("recurrent", "attention") or pick([False, False, True])
            self.shape = ((pick((3, 1, 2, 4, 6)),) if sequences else ()) + (pick(WIDTHS),)
        # Batch norms of one mode in a network, for a network is in one mode.
        self.training = pick([True, False]) if kind == "mixed" else self.norms[0] != "batch in evaluation"

    @property
    def width(self) -> int:
        return self.shape[0] if self.image else self.shape[-1]

    @property
    def dims(self) -> int:
        return len(self.shape) - 1

    def fits(self, op: str) -> bool:
        if op in ("conv", "transposed"):
            return self.image
        if op == "average":
            return self.image and min(self.shape[1:]) >= 2
        if op in ("elman", "attention", "recurrent", "last"):
            return not self.image and self.dims == 1
        if op in ("linear", "tied"):
            return not self.image and self.width <= _MOST_COLUMNS
        if op in ("flatten", "mean"):
            return self.dims > 0
        if op == "norm":
            return not self.image or any(norm not in ("layer", "rms") for norm in self.norms)
        return True

    def some(self, ops: Sequence[str]) -> list[Block]:
        fitting = [op for op in ops if self.fits(op)]
        return [self.one(self.pick(fitting))] if fitting else []

    def one(self, op: str) -> Block:
        drawn: Block = getattr(self, f"_{op}")()
        return {"op": op, **drawn}

    # --- what keeps the shape -----------------------------------------------------------------------------------

    def _activation(self) -> Block:
        return {"kind": 1.0 if self.linear else self.pick((0.3, 1.0, "relu", "tanh", "gelu"))}

    def _dropout(self) -> Block:
        return {}

    def _norm(self) -> Block:
        kinds = [norm for norm in self.norms if not (self.image and norm in ("layer", "rms"))]
        kind, width = self.pick(kinds), self.width
        groups = self.pick([count for count in (1, 2, 3, 4) if width % count == 0])
        dims = self.dims if self.image else 0
        return {"kind": kind, "width": width, "affine": self.pick((False, True)), "groups": groups, "dims": dims}

    def _residual(self) -> Block:
        before, scale = self.shape, self.pick((1, 0.5))
        inner = self.some(("norm",)) if self.kind not in ("residual", "mlp") and self.pick((False, True)) else []
        if self.image:
            channels = self.width
            inner += [self._same(channels), *self.some(("activation",)), self._same(channels)][self.pick((2, 0)) :]
        else:
            ops = {"attention": ("attention",), "recurrent": ("elman",), "mixed": ("attention", "elman", "linear")}
            inner += self.some(ops.get(self.kind, ("linear",)))
            inner += self.some(("activation",)) if self.pick((False, True)) else []
            inner.append(self.to(before[-1]))
        self.shape = before
        return {"blocks": tuple(inner), "scale": scale}

    def _same(self, channels: int) -> Block:
        kept = {"in": channels, "out": channels, "kernel": 3, "dims": self.dims, "stride": 1, "padding": 1}
        return {"op": "conv", **kept, "dilation": 1, "groups": 1, "bias": self.pick((False, True))}

    # --- features on the last axis ------------------------------------------------------------------------------

    def to(self, width: int) -> Block:
        block = {"op": "linear", "in": self.width, "out": width, "bias": self.pick((False, True))}
        self.shape = (*self.shape[:-1], width)
        return block

    def _linear(self) -> Block:
        return self.to(self.pick((*WIDTHS, 1, 2)))

    def _tied(self) -> Block:
        how = self.pick(("decoder", "twice", "alias"))
        width = self.pick(WIDTHS) if how == "decoder" else self.width
        return {"in": self.width, "width": width, "how": how, "bias": self.pick((False, True))}

    def _elman(self) -> Block:
        if not self.linear and self.pick((False, True)):
            kind = self.pick(("RNN", "GRU", "LSTM"))
            block = {"op": "recurrent", "kind": kind, "in": self.width, "out": self.pick(WIDTHS[:5])}
        else:
            block = {"in": self.width, "out": self.pick(WIDTHS), "in_place": self.pick((False, True))}
            block["tanh"] = not self.linear and self.pick((False, True))
        block["bias"] = self.pick((False, True))
        self.shape = (self.shape[0], block["out"])
        return block

    def _attention(self) -> Block:
        heads = self.pick((1, 2, 4))
        kv = self.pick([count for count in (heads, 1, 2) if heads % count == 0])
        block = {"in": self.width, "heads": heads, "each": self.pick((2, 3, 4)), "kv": kv}
        for name in ("bias", "fused", "causal"):
            block[name] = self.pick((False, True))
        self.shape = (self.shape[0], heads * block["each"])
        return block

    # --- images -------------------------------------------------------------------------------------------------

    def _conv(self, transposed: bool = False) -> Block:
        sizes, wide = self.shape[1:], self.width
        kernel = self.pick([size for size in (2, 1, 3) if wide * size**self.dims <= 80])
        stride, dilation = self.pick((1, 1, 2)), self.pick((1, 1, 1, 2))
        reach = dilation * (kernel - 1)
        padding = self.pick([pad for pad in (0, 1) if pad <= reach and min(sizes) + 2 * pad > reach] or [reach])
        out = self.pick((2, 1, 3, 4, 6, 8))
        groups = self.pick([count for count in (1, 1, 2, 3) if wide % count == 0 and out % count == 0])
        block = {"in": wide, "out": out, "kernel": kernel, "dims": self.dims, "stride": stride, "padding": padding}
        if transposed:
            made = tuple((size - 1) * stride - 2 * padding + reach + 1 for size in sizes)
        else:
            made = tuple((size + 2 * padding - reach - 1) // stride + 1 for size in sizes)
        if min(made) < 1 or max(made) > 16:
            block |= {"kernel": 1, "padding": 0, "stride": 1}
            dilation, made = 1, sizes
        self.shape = (out, *made)
        return {**block, "dilation": dilation, "groups": groups, "bias": self.pick((False, True))}

    def _transposed(self) -> Block:
        return self._conv(transposed=True)

    def _average(self) -> Block:
        dims = self.dims
        self.shape = (self.shape[0], *(size // 2 for size in self.shape[1:]))
        return {"dims": dims}

    # --- fewer positions ----------------------------------------------------------------------------------------

    def _flatten(self) -> Block:
        entries = 1
        for size in self.shape:
            entries *= size
        self.shape, self.image = (entries,), False
        return {}

    def _mean(self) -> Block:
        image = self.image
        self.shape, self.image = (self.width,), False
        return {"image": image}

    def _last(self) -> Block:
        self.shape = (self.shape[-1],)
        return {}


def _takes_statistics(blocks: Sequence[Block]) -> bool:
    """Whether a norm wants more than one value, which a single sample may not have."""
    return any(
        (block["op"] == "norm" and block["kind"] not in ("layer", "rms")) or _takes_statistics(block.get("blocks", ()))
        for block in blocks
    )


def draw(pick: Pick, kind: str) -> Network:
    """A network of one kind."""
    linear = pick((True, True, True, False))
    drawing = _Drawing(pick, kind, linear)
    shape, image = drawing.shape, drawing.image
    norm = kind.startswith("norm: ")
    ops = _FLAT + (("norm", "norm", "residual") if norm else _MORE.get(kind, ()))
    blocks: list[Block] = []
    depth = pick((1, 2, 3, 4, 5))
    essential = pick(tuple(range(depth)))
    for place in range(depth):
        if norm and not any(block["op"] == "linear" for block in blocks):
            blocks += drawing.some(("linear",))
        if place == essential:
            blocks += drawing.some(_ESSENTIAL[kind])
        blocks += drawing.some(ops)
    loss = pick(LOSSES)
    if loss == "own_input":
        if drawing.shape == shape:
            pass
        elif len(drawing.shape) == len(shape) and drawing.shape[:-1] == shape[:-1] and drawing.fits("linear"):
            blocks.append(drawing.to(shape[-1]))
        else:
            loss = "mse"
    elif pick((True, False)):
        blocks += drawing.some(("linear",))
    if not any(block["op"] in _WEIGHTED for block in blocks):
        loss = "mse" if loss == "own_input" else loss
        blocks += drawing.some(("linear", "conv"))
    batch = pick(BATCHES)
    if _takes_statistics(blocks):
        batch = max(batch, 2)
    carried = None
    first = blocks[0] if blocks else {}
    if first.get("op") == "elman" and "tanh" in first and pick((False, True)):
        carried = first["out"]
    low = pick((None, None, 1, 2, 3))
    return Network(
        kind,
        shape,
        image,
        tuple(blocks),
        drawing.shape,
        loss,
        batch,
        workers=pick((1, 2, 3)),
        accumulation=pick((1, 2)),
        input_rank=low if low is not None and low < shape[-1] and carried is None else None,
        training=drawing.training,
        linear=linear,
        carried=carried,
    )

"""Recurrent networks: Elman, GRU and LSTM, for series and text, over windows with the state carried on."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.config import Count, ModelConfig, Slope
from models.data.signature import Kind, Signature

State = tuple[Tensor, ...]


class RecurrentConfig(ModelConfig):
    """Recurrent layers one above the other, and a linear readout.

    Attributes:
        layers: how many.
        width: of the hidden state of each.
        bottleneck: width of the middle layer; None for no bottleneck.
        widths: of all layers, instead of layers, width and bottleneck.
        sequence_length: steps of truncated backpropagation through time: series are cut into windows of so
            many, each a training step, and the state is carried from one to the next without gradient. None
            for whole series. For text: tokens of a piece, each piece beginning anew.
        recurrent_init: of recurrent weights: `orthogonal`, or PyTorch's `uniform`.
        bias: whether the recurrent layers and the readout have biases.
    """

    layers: Count = 3
    width: Count = 64
    bottleneck: Count | None = None
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    sequence_length: Count | None = None
    recurrent_init: Literal["orthogonal", "uniform"] = "orthogonal"
    bias: bool = True

    takes: ClassVar[tuple[Kind, ...]] = ("series", "tokens")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        beside = {"layers", "width", "bottleneck"} & self.model_fields_set
        if self.widths is not None and beside:
            raise ValueError(f"widths is given beside {', '.join(sorted(beside))}; give either")
        return self

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the layers."""
        if self.widths is not None:
            return self.widths
        hidden = [self.width] * self.layers
        if self.bottleneck is not None:
            hidden[self.layers // 2] = self.bottleneck
        return tuple(hidden)

    @property
    def length(self) -> int | None:
        return self.sequence_length

    @property
    def alpha_knob(self) -> float:
        """The slope that studies compare; 1 where there is none."""
        return 1.0

    @property
    def knobs(self) -> dict[str, float]:
        return {
            "bottleneck": min(self.hidden),
            # 0 stands for whole series, whose length is the data's.
            "sequence_length": self.sequence_length or 0,
            "alpha": self.alpha_knob,
        }

    @abstractmethod
    def layer(self, inputs: int, hidden: int) -> "RecurrentLayer":
        """One recurrent layer."""

    def build(self, signature: Signature) -> nn.Module:
        first = signature.features if signature.kind == "series" else self.hidden[0]
        layers = [self.layer(m, n) for m, n in pairwise((first, *self.hidden))]
        embedding = nn.Embedding(signature.vocabulary, first) if signature.kind == "tokens" else None
        readout = nn.Linear(self.hidden[-1], signature.outputs, bias=self.bias)
        return Recurrent(embedding, layers, readout, each_step=signature.each_step)


class Elman(RecurrentConfig):
    """Elman's network: h_t = φ(W x_t + V h_{t−1} + b).

    Attributes:
        activation: φ: `leaky_relu` with slope alpha, `tanh` or `identity`.
        alpha: slope for negative inputs; 1 makes the network linear.
    """

    kind: Literal["elman"] = "elman"
    activation: Literal["leaky_relu", "tanh", "identity"] = "leaky_relu"
    alpha: Slope = 1.0

    @model_validator(mode="after")
    def _alpha_has_its_activation(self) -> Self:
        if "alpha" in self.model_fields_set and self.activation != "leaky_relu":
            raise ValueError(f"alpha is {self.alpha:g}, and activation {self.activation} has no slope; leaky_relu has")
        return self

    @property
    def alpha_knob(self) -> float:
        return {"leaky_relu": self.alpha, "identity": 1.0, "tanh": 0.0}[self.activation]

    def layer(self, inputs: int, hidden: int) -> "RecurrentLayer":
        linear = self.activation == "identity" or (self.activation == "leaky_relu" and self.alpha == 1)
        activation = nn.Identity() if linear else nn.Tanh() if self.activation == "tanh" else nn.LeakyReLU(self.alpha)
        return ElmanLayer(inputs, hidden, activation, self.recurrent_init == "orthogonal", self.bias)


class GRU(RecurrentConfig):
    """Gated recurrent units (Cho et al. 2014), as torch has them."""

    kind: Literal["gru"] = "gru"

    def layer(self, inputs: int, hidden: int) -> "RecurrentLayer":
        return GatedLayer(nn.GRU, inputs, hidden, self.recurrent_init == "orthogonal", self.bias)


class LSTM(RecurrentConfig):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), as torch has it."""

    kind: Literal["lstm"] = "lstm"

    def layer(self, inputs: int, hidden: int) -> "RecurrentLayer":
        return GatedLayer(nn.LSTM, inputs, hidden, self.recurrent_init == "orthogonal", self.bias)


class RecurrentLayer(nn.Module):
    """One recurrent layer: (series, state) → (series of hidden states, state).

    Attributes:
        hidden: width.
        states: tensors of the state, each samples × hidden.
    """

    hidden: int
    states: int

    @abstractmethod
    def forward(self, series: Tensor, state: State) -> tuple[Tensor, State]: ...


class ElmanLayer(RecurrentLayer):
    """One layer of an Elman network; its input weights see all steps at once."""

    states = 1

    def __init__(self, inputs: int, hidden: int, activation: nn.Module, orthogonal: bool, bias: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(inputs, hidden, bias=bias)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)
        self.activation = activation
        if orthogonal:
            nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, series: Tensor, state: State) -> tuple[Tensor, State]:
        (hidden,) = state
        outputs = []
        for driven in self.input(series).unbind(1):
            hidden = self.activation(driven + self.recurrent(hidden))
            outputs.append(hidden)
        return torch.stack(outputs, 1), (hidden,)


class GatedLayer(RecurrentLayer):
    """One layer of torch's GRU or LSTM, its state samples × hidden."""

    def __init__(
        self, kind: Callable[..., nn.GRU | nn.LSTM], inputs: int, hidden: int, orthogonal: bool, bias: bool
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = kind(inputs, hidden, batch_first=True, bias=bias)
        self.states = 2 if isinstance(self.cell, nn.LSTM) else 1
        if orthogonal:
            weights: Tensor = self.cell.get_parameter("weight_hh_l0")
            for gate in weights.data.split(hidden):  # each gate has a square matrix of its own
                nn.init.orthogonal_(gate)

    def forward(self, series: Tensor, state: State) -> tuple[Tensor, State]:
        given = tuple(part.unsqueeze(0) for part in state)
        outputs, left = self.cell(series, given if self.states == 2 else given[0])
        return outputs, tuple(part.squeeze(0) for part in (left if self.states == 2 else (left,)))


class Recurrent(nn.Module):
    """Layers, and a readout of each step or of the last one.

    Args:
        embedding: of tokens; None for series of numbers.
        layers: one above the other.
        readout: of the last layer's hidden state.
        each_step: whether each step is read out.
    """

    def __init__(
        self, embedding: nn.Module | None, layers: Sequence[RecurrentLayer], readout: nn.Module, each_step: bool
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers: Sequence[RecurrentLayer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.readout = readout
        self.each_step = each_step

    def initial_state(self, rows: int) -> State:
        """The state before the first step: zeros, each samples × hidden."""
        like = next(self.parameters())
        return tuple(like.new_zeros(rows, layer.hidden) for layer in self.layers for _ in range(layer.states))

    def forward(self, series: Tensor, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Without a state, begin with zeros and give the outputs; with one, give (outputs, *state)."""
        hidden = series if self.embedding is None else self.embedding(series)
        given, left = state or self.initial_state(len(series)), []
        for layer in self.layers:
            own, given = given[: layer.states], given[layer.states :]
            hidden, after = layer(hidden, own)
            left += after
        outputs: Tensor = self.readout(hidden if self.each_step else hidden[:, -1])
        return (outputs, *left) if state else outputs

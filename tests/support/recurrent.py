"""Recurrent networks unrolled by hand."""

import torch
from torch import Tensor, nn


class Elman(nn.Module):
    """Layers h_t = φ(U x_t + V h_{t−1}); every hidden state of the last layer comes out, or only the last."""

    def __init__(self, widths: list[int], *, bias: bool = False, activation=None, last: bool = True) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.inward = nn.ModuleList(nn.Linear(a, b, bias=bias, dtype=torch.float64) for a, b in pairs)
        self.hidden = nn.ModuleList(nn.Linear(b, b, bias=False, dtype=torch.float64) for _, b in pairs)
        for layer in self.hidden:
            nn.init.orthogonal_(layer.weight)
        self.activation, self.last = activation or (lambda x: x), last

    def forward(self, x: Tensor, states: list[Tensor] | None = None) -> Tensor:
        for i, (inward, hidden) in enumerate(zip(self.inward, self.hidden, strict=True)):
            state = None if states is None else states[i]
            found = []
            for t in range(x.shape[1]):
                step = inward(x[:, t])
                state = self.activation(step if state is None else step + hidden(state))
                found.append(state)
            x = torch.stack(found, 1)
        return x[:, -1] if self.last else x

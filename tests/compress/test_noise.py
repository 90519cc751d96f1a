"""float32 roundoff beside float64 shadows: it must read neither as rank nor as a broken bound."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress

ROWS, WIDTH, CLASSES = 24, 64, 5


class Attention(nn.Module):
    """Residual self-attention of two heads."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fused = fused

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
        return x + self.out(y.transpose(1, 2).flatten(-2))


class MultiHead(nn.Module):
    """torch's own, whose weights belong to no nn.Linear that is called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x)[0]


class Elman(nn.Module):
    """From a state of zeros: in one step the recurrent weight has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.recurrent = nn.Linear(WIDTH, 64), nn.Linear(64, 64)

    def forward(self, x):
        state = x.new_zeros(len(x), 64)
        for step in x.unbind(1):
            state = torch.tanh(self.inward(step) + self.recurrent(state))
        return state.unsqueeze(1)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def headed(*layers):
    return nn.Sequential(*layers, Mean(), nn.Linear(64, CLASSES))


NETWORKS = {
    "attention": lambda: headed(nn.Linear(WIDTH, 64), Attention(64, fused=False)),
    "fused attention": lambda: headed(nn.Linear(WIDTH, 64), Attention(64, fused=True)),
    "attention at once": lambda: headed(Attention(64, fused=True)),
    "normed": lambda: headed(nn.Linear(WIDTH, 64), nn.LayerNorm(64), Attention(64, fused=True), nn.LayerNorm(64)),
    "multi-head": lambda: headed(nn.Linear(WIDTH, 64), MultiHead(64)),
    "elman": lambda: headed(Elman()),
    "deep": lambda: headed(*(layer for _ in range(10) for layer in (nn.LazyLinear(64), nn.Sigmoid()))),
    "bottleneck": lambda: headed(nn.Linear(WIDTH, 64), nn.Linear(64, 2), nn.Linear(2, 64), nn.Linear(64, 64)),
}

ZERO = ("fused attention", "attention at once", "normed")
"""Where queries and keys have a gradient of roundoff over one position."""


def audited(rank, network, x, y):
    """Rows of one audited step, and the exact gradients."""
    shadow = copy.deepcopy(network).double()
    F.cross_entropy(shadow(x.double()), y).backward()
    ddp = DistributedDataParallel(network)
    audit = {"every": 1, "full_spectrum": True}
    state = compress.register(ddp, compressor="dense", audit=audit)
    F.cross_entropy(ddp(x), y).backward()
    exact = {name: parameter.grad for name, parameter in shadow.named_parameters()}
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return [(row, exact[row.name], found[row.name]) for row in state.audit_rows()]


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_roundoff_is_no_rank(workers, name, positions):
    torch.manual_seed(1)
    network, x, y = NETWORKS[name](), torch.randn(ROWS, positions, WIDTH), torch.randint(CLASSES, (ROWS,))
    with torch.no_grad():
        network(x)  # makes lazy layers
    zero_but_for_roundoff = 0
    for row, exact, found in workers(1)(audited, network, x, y)[0]:
        noise = float(torch.linalg.matrix_norm(found.double() - exact, 2))
        values = torch.linalg.svdvals(exact)
        assert noise <= row.tolerance, row.name
        assert row.measured_rank == int((values > row.tolerance).sum()), row.name
        if float(found.norm()) > 0 and float(values[0]) <= 1e-6 * noise:  # zero in exact arithmetic
            zero_but_for_roundoff += 1
            assert row.measured_rank == 0
            assert compress.measure_rank(found).numerical > 0  # by size alone it would be rank
    assert zero_but_for_roundoff == (2 if positions == 1 and name in ZERO else 0)  # of queries and of keys


def test_a_floor_hides_nothing_that_is_not_roundoff(workers):
    """Vanishing gradients are small beside those behind them, and have their rank all the same."""
    torch.manual_seed(1)
    network = nn.Sequential(*(layer for _ in range(14) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())))
    rows = workers(1)(audited, network, torch.randn(ROWS, WIDTH), torch.randint(WIDTH, (ROWS,)))[0]
    assert rows[0][0].gradient_norm < 1e-7 * rows[-1][0].gradient_norm
    for row, exact, _ in rows:
        largest = float(torch.linalg.matrix_norm(exact, 2))
        assert row.tolerance < 1e-4 * largest
        assert row.measured_rank == int((torch.linalg.svdvals(exact) > row.tolerance).sum()) > 0

"""More networks made to get a bound that is too small: equal names of coefficients must mean equal entries."""

import pytest
import torch
import torch.nn.functional as F
from measured import gradients, rank
from torch import Tensor, nn

from compress import rank_bounds

WIDE = 8


class Net(nn.Module):
    """Layers without biases, a vector, and whatever else a function puts together."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name in ("a", "b", "c", "last"):
            setattr(self, name, nn.Linear(WIDE, WIDE, bias=False))
        self.down, self.up = nn.Linear(WIDE, 2, bias=False), nn.Linear(2, WIDE, bias=False)
        self.up2, self.biased = nn.Linear(2, WIDE, bias=False), nn.Linear(2, WIDE)
        self.vector, self.table = nn.Parameter(torch.randn(WIDE)), nn.Parameter(torch.randn(20, WIDE))
        for name, module in modules.items():
            setattr(self, name, module)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)

    def narrow(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def scores(self, x: Tensor) -> Tensor:
        return self.a(x) @ self.b(x).mT


def check(forward, *shape: int, loss=F.mse_loss, workers: int = 2, steps: int = 1, **modules: nn.Module) -> None:
    torch.manual_seed(0)
    model, passes = Net(forward, **modules), workers * steps
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3)
    inputs = [torch.randn(shape, dtype=torch.float64) for _ in range(passes)]
    size = model(inputs[0]).shape
    targets = [torch.randn(size, dtype=torch.float64) for _ in range(passes)]
    bounds = rank_bounds(
        model, (inputs[0],), loss=loss, targets=(targets[0],), world_size=workers, accumulation_steps=steps
    )
    runs = [lambda m, x=x, t=t: loss(m(x), t) for x, t in zip(inputs, targets, strict=True)]
    found = {n: (rank(g), bounds[n].rank, bounds[n].reason) for n, g in gradients(model, runs).items()}
    assert all(ranks[0] <= ranks[1] for ranks in found.values()), found


def output(y: Tensor, target: Tensor) -> Tensor:
    return y


def overwritten(m: Net, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = torch.zeros(len(x), 2, dtype=x.dtype)
    return m.last(m.a(x) - m.a(y))


def flipped(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    return torch.tanh(m.down(h).flip(0) + h @ m.up.weight)


def numbers_of_rows(m: Net, x: Tensor) -> Tensor:
    h, numbers = m.down(x), x.sum((1, 2))[:, None, None]
    return m.last(m.up(h * numbers) + m.up2((h.transpose(0, 1) * numbers).transpose(0, 1)))


def computed(m: Net, x: Tensor) -> Tensor:
    weight = m.a.weight @ m.b.weight
    return m.last(x @ weight - F.linear(x, weight))


def without_gradients(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        same = m.b(h) * 1
    return m.b(h) - same


def pieces_normalised(m: Net, x: Tensor) -> Tensor:
    u, v = (y.mean(0, keepdim=True).expand_as(x) for y in (m.a(x), m.b(x.square())))
    h = u * x.sum(-1, keepdim=True) + v * x.pow(3).sum(-1, keepdim=True)
    return m.last(F.layer_norm(h.view(-1, 2, 4), (4,)).flatten(1))


SQUARE, FLAT, BATCH = (5, 5, WIDE), (20, WIDE), (6, 5, WIDE)
FORWARDS = {
    "two axes swapped": (lambda m, x: m.last(m.narrow(x) + m.up2(m.down(x).transpose(0, 1))), SQUARE),
    "numbers of rows of two axes": (numbers_of_rows, SQUARE),
    "flipped adjoint": (flipped, FLAT),
    "input times two": (lambda m, x: m.last(m.a(2 * x) - m.a(x)), FLAT),
    "input times data": (lambda m, x: m.last(m.narrow(x) + m.up2(m.down(x * x.sum()))), FLAT),
    "mean and sum": (lambda m, x: m.last(m.a(x.mean(1)) - m.a(x.sum(1))), (20, 3, WIDE)),
    "one and two": (lambda m, x: m.last((m.a(x) + 1.0) - (m.a(x) + 2.0)), FLAT),
    "over the input": (lambda m, x: m.last(m.vector * x - m.vector / x), FLAT),
    "overwritten": (overwritten, FLAT),
    "repeated to two widths": (
        lambda m, x: m.last(m.a(x[:, None].expand(-1, 8)) + m.up(x[:, None].expand(-1, 2))),
        (20,),
    ),
    "vector of data": (lambda m, x: m.last(m.narrow(x) * (m.vector * x.mean(0))), FLAT),
    "number of data": (
        lambda m, x: m.last(m.narrow(x) * (m.vector * x.mean(0)).sum() + m.up2(m.down(x))),
        FLAT,
    ),
    "softmax times two": (
        lambda m, x: m.last(2 * m.scores(x).softmax(-1) @ m.biased(m.down(x)) - m.biased(m.down(x))),
        BATCH,
    ),
    "softmax times data": (
        lambda m, x: m.last((m.scores(x).softmax(-1) * x.sum()) @ m.biased(m.down(x)) + m.vector),
        BATCH,
    ),
    "softmax without one key": (
        lambda m, x: m.last(m.scores(x).softmax(-1)[:, :, 1:] @ m.biased(m.down(x))[:, 1:] + m.vector),
        BATCH,
    ),
    "softmax transposed": (lambda m, x: m.last(m.scores(x).softmax(-1).mT @ m.biased(m.down(x)) + m.vector), BATCH),
    "identical permutation": (
        lambda m, x: m.last(F.linear(x, m.a.weight.permute(0, 1)) - F.linear(x, m.a.weight.t())),
        FLAT,
    ),
    "computed weight both ways": (computed, FLAT),
    "matrix added": (lambda m, x: m.last(torch.addmm(m.table, m.down(x), m.up.weight.t())), FLAT),
    "gain of data": (lambda m, x: m.last(F.layer_norm(m.narrow(x), (WIDE,), weight=x.mean(0))), FLAT),
    "given statistics": (lambda m, x: m.last(F.batch_norm(m.narrow(x), x.mean(0), x.var(0))), FLAT),
    "no_grad": (without_gradients, FLAT),
    "cropped": (lambda m, x: m.last(F.pad(m.a(x), (0, 0, 2, -2))), FLAT),
    "pieces normalised": (pieces_normalised, FLAT),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_entries_that_are_not_equal(name):
    forward, shape = FORWARDS[name]
    check(forward, *shape)


LOSSES = {
    "adjoint times data": lambda m, x: (lambda h: m.b(h).sum() * x.sum() + m.c(h).sum())(m.a(x)),
    "adjoint times two": lambda m, x: (lambda h: m.b(m.c(h)).sum() + 2 * m.b(-m.c(h)).sum())(m.a(x)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_in_adjoints(name):
    check(LOSSES[name], *FLAT, loss=output)


def test_squares_of_different_weights():
    check(lambda m, x: m.last(m.narrow(x)), *FLAT, loss=lambda y, t: F.mse_loss(y, t) + 2 * F.mse_loss(-y, t))


def test_synchronised_statistics_of_each_step():
    check(lambda m, x: m.last(m.norm(m.narrow(x))), *FLAT, workers=1, steps=2, norm=nn.SyncBatchNorm(WIDE))


def test_positions_joined_in_two_orders():
    def forward(m: Net, x: Tensor) -> Tensor:
        h = m.first(x)
        return m.third(m.one(h.flatten(2)) + m.two(h.transpose(2, 3).flatten(2)))

    one, two = (nn.Conv1d(2, 16, 2, bias=False) for _ in range(2))
    check(forward, 6, 8, 4, 4, first=nn.Conv2d(8, 2, 1, bias=False), one=one, two=two, third=nn.Conv1d(16, 16, 1))


def test_an_average_that_is_none():
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.first(x)
        return m.second(F.avg_pool2d(y, 2, 1, divisor_override=1) - y[:, :, :3, :3])

    check(forward, 6, 2, 4, 4, first=nn.Conv2d(2, 8, 1), second=nn.Conv2d(8, 8, 1, bias=False))

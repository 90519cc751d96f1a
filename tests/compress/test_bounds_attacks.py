"""Networks made to get a bound that is too small: no measured rank may exceed its bound."""

import pytest
import torch
import torch.nn.functional as F
from measured import gradients, rank
from torch import Tensor, nn

from compress import TraceError, rank_bounds

WIDTH, NARROW, ROWS = 8, 2, 40


class Net(nn.Module):
    """Layers a, b (8 → 8), down (8 → 2) and up (2 → 8) without biases, put together by a function."""

    def __init__(self, forward, **extra: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
        self.b = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
        self.down = nn.Linear(WIDTH, NARROW, bias=False, dtype=torch.float64)
        self.up = nn.Linear(NARROW, WIDTH, bias=False, dtype=torch.float64)
        self.vector = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
        self.register_buffer("buffer", torch.zeros(WIDTH, dtype=torch.float64))
        for name, module in extra.items():
            setattr(self, name, module.double())
        self.compute = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def narrow(m: Net, x: Tensor) -> Tensor:
    return m.up(m.down(x))


def mutated(m: Net, x: Tensor) -> Tensor:
    y = narrow(m, x) + m.buffer
    m.buffer.copy_(x.detach().mean(0))
    return m.b(y)


def reassigned(m: Net, x: Tensor) -> Tensor:
    y = narrow(m, x) + m.buffer
    m.buffer = x.detach().mean(0) * 1
    return m.b(y)


def mutated_parameter(m: Net, x: Tensor) -> Tensor:
    y = narrow(m, x) + m.vector
    with torch.no_grad():
        m.vector.copy_(x.detach().mean(0))
    return m.b(y)


FORWARDS = {
    "dropout": lambda m, x: m.b(F.dropout(narrow(m, x), training=m.training)),
    "chunk and cat": lambda m, x: torch.cat(m.a(x).chunk(2, -1)[::-1], -1),
    "unbind": lambda m, x: torch.stack(m.a(x).unbind(-1), -1),
    "split": lambda m, x: m.b(torch.cat(m.a(x).split([3, 5], -1), -1)),
    "sort": lambda m, x: m.b(m.a(x).sort(-1).values),
    "max": lambda m, x: m.b(m.a(x)) * m.a(x).max(-1, keepdim=True).values,
    "fft": lambda m, x: torch.fft.fft(m.a(x)).real,
    "complex": lambda m, x: torch.complex(m.a(x), m.b(x)).angle(),
    "mask": lambda m, x: m.a(x) * (x > 0).double(),
    "integers": lambda m, x: m.a((3 * x).long().double()),
    "integers scaled": lambda m, x: m.a((3 * x).long().double() / 7),
    "transposed weight": lambda m, x: narrow(m, x) @ m.b.weight.t(),
    "flipped rows": lambda m, x: m.b(m.down(x) @ m.up.weight.t() + m.down(x.flip(0)) @ m.b.weight[:2]),
    "broadcast rows": lambda m, x: m.b(narrow(m, x) + x[:1]),
    "hypernetwork": lambda m, x: F.linear(x, m.b(m.a.weight)),
    "weight as data": lambda m, x: m.b(torch.cat([x, m.a.weight])),
    "detach": lambda m, x: m.b(m.a(x).detach()) + m.up(m.down(x)),
    "in place": lambda m, x: m.b(m.a(x).mul_(2).add_(x)),
    "slice written": lambda m, x: torch.zeros_like(x).index_copy(1, torch.arange(2), m.down(m.a(x))),
    "buffer mutated": mutated,
    "buffer reassigned": reassigned,
    "parameter mutated": mutated_parameter,
}

MODULES = {
    "batch norm": nn.BatchNorm1d(WIDTH),
    "layer norm": nn.LayerNorm(WIDTH),
    "lstm": nn.LSTM(WIDTH, WIDTH, batch_first=True),
    "gru": nn.GRU(WIDTH, WIDTH, batch_first=True),
    "attention": nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
}


def check(model: nn.Module, loss=F.mse_loss, target: Tensor | None = None, passes: int = 3, **options) -> None:
    torch.manual_seed(1)
    inputs = [torch.randn(ROWS, WIDTH, dtype=torch.float64) for _ in range(passes)]
    if target is None:
        target = torch.randn(model(inputs[0]).shape, dtype=torch.float64)
    bounds = rank_bounds(model, (inputs[0],), loss=loss, targets=(target,), world_size=passes, **options)
    measured = gradients(model, [lambda m, x=x: loss(m(x), target) for x in inputs])
    found = {name: (rank(matrix), bounds[name].rank, bounds[name].reason) for name, matrix in measured.items()}
    assert all(ranks[0] <= ranks[1] for ranks in found.values()), found


@pytest.mark.parametrize("name", FORWARDS)
def test_forward_passes(name):
    check(Net(FORWARDS[name]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_modules_without_rules(name, training):
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.extra(m.a(x)[None] if name not in ("batch norm", "layer norm") else m.a(x))
        return m.b(y[0] if isinstance(y, tuple) else y).reshape(ROWS, WIDTH)

    model = Net(forward, extra=MODULES[name]).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    check(model, training=training)


LOSSES = {
    "mse of other shapes": (lambda y, t: F.mse_loss(y, t[:1]), None),
    "cross-entropy of itself": (lambda y, t: F.cross_entropy(y, y), None),
    "soft targets": (lambda y, t: F.cross_entropy(y, t.softmax(-1), label_smoothing=0.1), None),
    "one-hot": (
        lambda y, t: F.mse_loss(y, F.one_hot(t, WIDTH).double()),
        torch.arange(ROWS) % WIDTH,
    ),
    "weighted by data": (lambda y, t: (y - t).square().mean() * y.detach().abs().sum() + y.pow(2).sum(), None),
    "rows reduced first": (lambda y, t: (y - t).mean(1).pow(2).mean(), None),
    "absolute": (lambda y, t: (y - t).abs().mean(), None),
    "no reduction": (lambda y, t: F.mse_loss(y, t, reduction="none").pow(2).sum(), None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    loss, target = LOSSES[name]
    check(Net(lambda m, x: m.b(narrow(m, x)) + m.a(x)), loss, target)


def test_a_loss_module_of_its_own_parameters_is_traced_along():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.head(output), target)

    check(Net(lambda m, x: m.a(x)), Weighted())


def test_a_captured_parameter_is_full():
    model = Net(lambda m, x: m.b(narrow(m, x)))
    weight = model.b.weight
    check(model, lambda y, t: F.mse_loss(y, t) + weight.pow(3).sum())
    model.kept = [model.b.weight]
    model.compute = lambda m, x: narrow(m, x) @ m.kept[0]
    check(model)


class Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1e-3, 1e-3)


def hooked(m: Net, x: Tensor) -> Tensor:
    y = narrow(m, m.a(x))
    y.register_hook(lambda g: g.clamp(-1e-3, 1e-3))
    return y


@pytest.mark.parametrize("forward", [lambda m, x: Clamped.apply(narrow(m, m.a(x))), hooked])
def test_a_backward_that_the_graph_does_not_show_is_refused(forward):
    with pytest.raises(TraceError, match="the graph does not show"):
        check(Net(forward))
    check(Net(lambda m, x: narrow(m, x)))  # and the next network is traced as ever


@pytest.mark.parametrize("owner", ["module", "parameter"])
def test_backward_hooks_are_refused(owner):
    model = Net(lambda m, x: narrow(m, m.a(x)))
    if owner == "module":
        model.up.register_full_backward_hook(lambda m, given, sent: tuple(g and g.clamp(-1, 1) for g in given))
    else:
        model.a.weight.register_hook(lambda g: g.clamp(-1, 1))
    with pytest.raises(TraceError, match="backward hook"):
        rank_bounds(model, (torch.randn(4, WIDTH, dtype=torch.float64),))

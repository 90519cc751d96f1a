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


class TestAxesOfSizeOne:
    """Sizes of one, where an axis of features fits several axes of the shape."""

    @pytest.mark.parametrize("known", [None, 1])
    def test_a_single_image_of_a_single_channel(self, known):
        torch.manual_seed(0)
        model = nn.Conv1d(1, 3, 2, dilation=2, dtype=torch.float64)
        space = torch.randn(known or 5, 5, dtype=torch.float64)
        inputs = [torch.randn(1, 1, len(space), dtype=torch.float64) @ space for _ in range(2)]
        target = torch.tensor([[0, 2, 1]])
        bounds = rank_bounds(
            model, (inputs[0],), loss=F.cross_entropy, targets=(target,), world_size=2, input_rank=known
        )
        measured = gradients(model, [lambda m, x=x: F.cross_entropy(m(x), target) for x in inputs])
        assert bounds["weight"].rank == rank(measured["weight"]) == 2

    def test_a_stack_of_one(self):
        class One(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Linear(3, 4, bias=False, dtype=torch.float64)

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([self.a(x[:, 0])], 1)

        x, target = torch.randn(5, 1, 3, dtype=torch.float64), torch.randn(5, 1, 4, dtype=torch.float64)
        bounds = rank_bounds(One(), (x,), loss=lambda y, t: ((y - t) ** 2).mean(), targets=(target,))
        assert bounds["a.weight"].rank == 3


class Made(nn.Module):
    """Modules by name, put together by a function."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            setattr(self, name, module.double())

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def linear(wide_in: int, wide_out: int) -> nn.Linear:
    return nn.Linear(wide_in, wide_out, bias=False)


def compare(forward, *shape: int, loss=F.mse_loss, passes: int = 1, **modules: nn.Module) -> None:
    torch.manual_seed(0)
    model, inputs = Made(forward, **modules), [torch.randn(shape, dtype=torch.float64) for _ in range(passes)]
    target = torch.randn(model(inputs[0]).shape, dtype=torch.float64)
    bounds = rank_bounds(model, (inputs[0],), loss=loss, targets=(target,), world_size=passes)
    measured = gradients(model, [lambda m, x=x: loss(m(x), target) for x in inputs])
    found = {name: (rank(matrix), bounds[name].rank, bounds[name].reason) for name, matrix in measured.items()}
    assert all(ranks[0] <= ranks[1] for ranks in found.values()), found


class TestRowsOfOtherAxes:
    """A rank along one axis says nothing of the rank along another."""

    @staticmethod
    def one_row_times_numbers(m, x: Tensor) -> Tensor:
        return m.a(x.mean((0, 1), keepdim=True)).expand(*x.shape[:2], 6) * x.sum(-1, keepdim=True)

    def test_features_split_into_rows(self):
        compare(lambda m, x: m.b(m.a(x).view(1, 4, 2)), 1, 8, a=linear(8, 8), b=linear(2, 5))

    def test_another_axis_as_features(self):
        forward = lambda m, x: m.b(self.one_row_times_numbers(m, x).transpose(1, 2))  # noqa: E731
        compare(forward, 4, 5, 6, a=linear(6, 6), b=linear(5, 5))

    def test_rows_joined_to_features(self):
        forward = lambda m, x: m.b(self.one_row_times_numbers(m, x).flatten(1))  # noqa: E731
        compare(forward, 4, 5, 6, a=linear(6, 6), b=linear(30, 7))

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
    def test_a_layer_that_all_heads_share(self, causal, which):
        def forward(m, x: Tensor) -> Tensor:
            b, t, w = x.shape
            parts = [m.a(x).view(b, t, 4, w // 4), m.b(x).view(b, t, 4, w // 4), m.c(x).view(b, t, 4, w // 4)]
            q, k, v = (m.each(y) if i in which else y for i, y in enumerate(parts))
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            return m.o(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, t, w))

        maps = {name: linear(16, 16) for name in "abc"}
        compare(forward, 1, 2, 16, **maps, each=linear(4, 4), o=linear(16, 5))


class TestConstantsOfSteps:
    """A bias gives each step of a recurrence another constant; weights that sum to zero over steps leave some."""

    @staticmethod
    def steps(m, x: Tensor) -> Tensor:
        state, found = m.inward(m.down(x[:, 0])), []
        for t in range(x.shape[1]):
            found.append(state)
            state = m.inward(m.down(x[:, t])) + m.hidden(state)
        return torch.stack(found, 1)

    def modules(self) -> dict[str, nn.Module]:
        return {"down": linear(6, 1), "inward": nn.Linear(1, 12), "hidden": linear(12, 12)}

    def test_before_a_batch_norm(self):
        def forward(m, x: Tensor) -> Tensor:
            return m.norm(m.a(self.steps(m, x)).transpose(1, 2))

        compare(forward, 30, 3, 6, **self.modules(), a=linear(12, 12), norm=nn.BatchNorm1d(12))

    @pytest.mark.parametrize("fused", [False, True])
    def test_as_keys(self, fused):
        def forward(m, x: Tensor) -> Tensor:
            h = self.steps(m, x)
            q, k, v = m.q(h), m.k(h), m.v(h)
            y = F.scaled_dot_product_attention(q, k, v) if fused else (q @ k.transpose(1, 2)).softmax(-1) @ v
            return m.o(y)

        maps = {name: linear(12, 12) for name in "qkvo"}
        compare(forward, 30, 3, 6, **self.modules(), **maps)


def low(m, x: Tensor) -> Tensor:
    return m.up(m.down(x))


class TestNumbersOfTheData:
    """Numbers that differ between workers make another constant on each."""

    def test_a_bias_times_a_mean(self):
        def forward(m, x: Tensor) -> Tensor:
            return m.a(m.one(0 * x) * x.abs().mean() + m.two(0 * x) + low(m, x))

        maps = {"one": nn.Linear(8, 8), "two": nn.Linear(8, 8), "down": linear(8, 1), "up": linear(1, 8)}
        compare(forward, 20, 8, **maps, a=linear(8, 8), passes=3)

    @pytest.mark.parametrize("square", [lambda y: y.square().mean(), lambda y: F.mse_loss(y, torch.zeros_like(y))])
    def test_a_loss_times_a_mean(self, square):
        def forward(m, x: Tensor) -> Tensor:
            y = low(m, x) + m.seen(x) - m.seen(x).detach()
            return torch.cat([m.a(y), y, x], 1)

        def loss(y: Tensor, t: Tensor) -> Tensor:
            return square(y[:, :8]) * y[:, 16:].detach().abs().mean() + square(y[:, 8:16])

        maps = {"down": linear(8, 1), "up": linear(1, 8), "seen": linear(8, 8), "a": linear(8, 8)}
        compare(forward, 20, 8, **maps, loss=loss, passes=3)

    def test_losses_of_other_weight_do_not_cancel(self):
        def loss(y: Tensor, t: Tensor) -> Tensor:
            return 2 * F.mse_loss(y, 2 * y.detach()) + F.mse_loss(y, 0 * t)

        compare(low, 20, 8, down=linear(8, 1), up=linear(1, 8), loss=loss)


def test_part_of_a_softmax_does_not_sum_to_one():
    def forward(m, x: Tensor) -> Tensor:
        h = low(m, x)
        scores = h @ h.transpose(1, 2)
        weights = torch.cat([scores, scores.new_zeros(*scores.shape[:2], 1)], -1).softmax(-1)[..., :-1]
        return m.norm(m.a(weights @ h).transpose(1, 2))

    maps = {"down": linear(6, 1), "up": nn.Linear(1, 12), "a": linear(12, 12), "norm": nn.BatchNorm1d(12)}
    compare(forward, 20, 4, 6, **maps)


def test_a_masked_class_may_be_the_target():
    def loss(y: Tensor, t: Tensor) -> Tensor:
        hidden = torch.arange(y.shape[1]) == 0
        return F.cross_entropy(y.masked_fill(hidden, -1e31), torch.arange(len(y)) % y.shape[1])

    compare(lambda m, x: m.a(x) + m.b(x), 20, 8, a=linear(8, 5), b=linear(8, 1), loss=loss)

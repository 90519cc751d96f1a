"""What else bounds give: subspaces, nearly exact ranks, rules of one's own, networks that cannot be traced."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from measured import gradients, rank
from recurrent import Elman
from torch import Tensor, nn

from compress import TraceError, rank_bounds
from compress.bounds import register_rule
from compress.bounds.rules import RULES


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def chain(*widths: int, bias: bool = False, alpha: float | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias, dtype=torch.float64)]
        if alpha is not None:
            layers += [nn.LeakyReLU(alpha)]
    return nn.Sequential(*layers)


class TestBasis:
    def both(self, model, x, target, loss=F.mse_loss, **options):
        bounds = rank_bounds(model, (x,), loss=loss, targets=(target,), **options)
        return bounds, gradients(model, [lambda m: loss(m(x), target)])

    def test_the_gradient_lies_in_the_bases_that_the_weights_give(self):
        model = chain(48, 48, 8, 48, 10, bias=True)
        bounds, found = self.both(model, normal(200, 48), torch.randint(0, 10, (200,)), F.cross_entropy)
        parameters = dict(model.named_parameters())
        sides = {}
        for name, bound in bounds.items():
            basis, gradient = bound.basis(parameters), found[name]
            sides[name] = (basis.inputs is not None, basis.adjoint is not None)
            for side, turned in ((basis.inputs, gradient), (basis.adjoint, gradient.T)):
                if side is not None:
                    eye = torch.eye(side.shape[1], dtype=side.dtype)
                    assert torch.allclose(side.T @ side, eye, atol=1e-10)
                    assert (turned - turned @ side @ side.T).norm() < 1e-12 * turned.norm()
        # Inputs are known behind the bottleneck, adjoints before it and from ten classes on.
        assert sides == {
            "0.weight": (False, True),
            "1.weight": (False, False),
            "2.weight": (False, True),
            "3.weight": (True, True),
        }

    def test_both_sides_known_make_seventy_two_numbers(self):
        model = chain(256, 8, 256, 10)
        bounds, found = self.both(model, normal(300, 256), torch.randint(0, 10, (300,)), F.cross_entropy)
        basis, gradient = bounds["1.weight"].basis(dict(model.named_parameters())), found["1.weight"]
        assert basis.inputs is None  # the layer behind the bottleneck reads all of it
        assert basis.adjoint.shape == (256, 9)
        deeper = chain(256, 8, 256, 256, 10)
        bounds, found = self.both(deeper, normal(300, 256), torch.randint(0, 10, (300,)), F.cross_entropy)
        basis, gradient = bounds["2.weight"].basis(dict(deeper.named_parameters())), found["2.weight"]
        wrapped = {f"module._orig_mod.{name}": weight for name, weight in deeper.named_parameters()}
        assert torch.equal(bounds["2.weight"].basis(wrapped).inputs, basis.inputs)
        core = basis.adjoint.T @ gradient @ basis.inputs
        assert core.numel() == 72
        assert (basis.adjoint @ core @ basis.inputs.T - gradient).norm() < 1e-12 * gradient.norm()

    def test_recurrent_and_convolutional_spaces_have_bases_too(self):
        model = Elman([24, 24, 2, 24])
        bounds, found = self.both(model, normal(96, 5, 24), normal(96, 24))
        for name, width in (("hidden.0.weight", 8), ("inward.0.weight", 10), ("hidden.2.weight", 8)):
            basis = bounds[name].basis(dict(model.named_parameters()))
            side = basis.adjoint if basis.adjoint is not None else basis.inputs
            turned = found[name].T if basis.adjoint is not None else found[name]
            assert side.shape[1] >= width
            assert (turned - turned @ side @ side.T).norm() < 1e-10 * turned.norm()
        conv = nn.Sequential(
            nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(2, 16, 1), nn.Conv2d(16, 32, 3, padding=1, bias=False)
        ).double()
        bounds, found = self.both(conv, normal(4, 8, 6, 6), normal(4, 32, 6, 6))
        basis, gradient = bounds["2.weight"].basis(dict(conv.named_parameters())), found["2.weight"]
        assert basis.inputs.shape == (16 * 9, 3 * 9)  # two channels and a bias at nine taps
        assert (gradient - gradient @ basis.inputs @ basis.inputs.T).norm() < 1e-10 * gradient.norm()

    def test_none_where_data_or_workers_decide(self):
        low = chain(16, 16, 16)
        bounds = rank_bounds(low, (normal(64, 16),), loss=F.mse_loss, targets=(normal(64, 16),), input_rank=3)
        assert bounds["1.weight"].basis(dict(low.named_parameters())) == (None, None)
        norm = nn.Sequential(nn.Linear(16, 2), nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)).double()
        bounds = rank_bounds(norm, (normal(64, 16),), loss=F.mse_loss, targets=(normal(64, 16),))
        assert bounds["3.weight"].rank == 3
        assert bounds["3.weight"].basis(dict(norm.named_parameters())).inputs is None

    def test_bases_travel_with_pickled_bounds(self):
        model = chain(16, 2, 16, 16)
        bound = rank_bounds(model, (normal(64, 16),))["2.weight"]
        arrived = pickle.loads(pickle.dumps(bound))
        assert arrived == bound
        parameters = dict(model.named_parameters())
        assert torch.equal(arrived.basis(parameters).inputs, bound.basis(parameters).inputs)
        with pytest.raises(ValueError, match="named_parameters"):
            arrived.basis({})


class TestNearlyLow:
    def test_the_loss_at_the_linear_rank_is_certified_for_leaky_relu(self):
        torch.manual_seed(0)
        for alpha in (0.0, 0.1, 0.5, 0.9, 0.99):
            model = chain(32, 32, 4, 32, 32, alpha=alpha)
            x, target = normal(256, 32), normal(256, 32)
            bounds = rank_bounds(model, (x,), loss=F.mse_loss, targets=(target,))
            bound = bounds["6.weight"]  # behind the bottleneck and two activations
            assert (bound.rank, bound.linear_rank, bound.certificate) == (32, 4, "proven")
            assert bound.certified_loss == pytest.approx(1 - ((1 + alpha) / 2) ** 2)
            inputs = model[:6](x)
            values = torch.linalg.svdvals(inputs)
            # N_A from the bottleneck on, whose four features are what the rank counts
            budget = model[:3](x).norm() * torch.linalg.matrix_norm(model[4].weight, 2)
            assert values[4:].norm() <= bound.certified_loss * budget * (1 + 1e-9)

    def test_exact_where_the_bound_is_and_calibrated_for_other_activations(self):
        model = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 32)).double()
        bounds = rank_bounds(model, (normal(64, 32),), loss=F.mse_loss, targets=(normal(64, 32),))
        assert (bounds["3.weight"].linear_rank, bounds["3.weight"].certificate) == (5, "calibrated")
        assert 0 < bounds["3.weight"].certified_loss < 1
        assert (bounds["1.weight"].linear_rank, bounds["1.weight"].certified_loss) == (4, 0.0)

    def test_relu_is_a_leaky_relu_of_slope_zero(self):
        model = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32)).double()
        bound = rank_bounds(model, (normal(64, 32),), loss=F.mse_loss, targets=(normal(64, 32),))["3.weight"]
        assert (bound.linear_rank, bound.certified_loss, bound.certificate) == (5, 0.5, "proven")

    def test_the_rank_of_a_later_weight_does_bound(self):
        # Errata of eq. (1): rank(W_2) = 3 gives ∇W_1 rank 3, and ∇W_2 rank 64.
        model = chain(64, 64, 64)
        with torch.no_grad():
            model[1].weight.copy_(normal(64, 3) @ normal(3, 64))
        found = gradients(model, [lambda m: F.mse_loss(m(normal(128, 64)), normal(128, 64))])
        assert [rank(gradient) for gradient in found.values()] == [3, 64]

    def test_eq_12_times_the_positions_is_looser_than_nine_for_each_channel(self):
        model = nn.Sequential(nn.Conv2d(16, 64, 3, bias=False), nn.Conv2d(64, 2, 3, bias=False)).double()
        bounds = rank_bounds(model, (normal(4, 16, 12, 12),), loss=lambda y: y.square().mean())
        assert bounds["0.weight"].rank == 2 * 9 < 2 * 8 * 8  # 8 × 8 positions of output

    def test_each_time_step_of_eq_2_exceeds_the_bottleneck(self):
        # Δ_1 alone has rank b·T, since adjoints arrive through V from every later step.
        model = Elman([32, 32, 2], last=False)
        x, target = normal(64, 4, 32), normal(64, 4, 2)
        kept: list[Tensor] = []
        handle = model.inward[0].register_forward_hook(lambda module, given, sent: kept.append(sent))
        loss = F.mse_loss(model(x), target)
        handle.remove()
        (first,) = torch.autograd.grad(loss, kept[:1])
        assert rank(first) == 2 * 4


class TestTokens:
    def test_an_embedding_has_a_row_for_each_distinct_token(self):
        model = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 24)).double()
        tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 1]])
        target = normal(1, 7, 24)
        rows = rank_bounds(model, (tokens,), loss=F.mse_loss, targets=(target,))["0.weight"]
        hint = rank_bounds(model, (tokens,), loss=F.mse_loss, targets=(target,), distinct_tokens=3)["0.weight"]
        found = rank(gradients(model, [lambda m: F.mse_loss(m(tokens), target)])["0.weight"])
        assert (rows.rank, hint.rank, found) == (7, 3, 3)
        assert "distinct tokens" in hint.reason


@torch.library.custom_op("gradrank_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = chain(16, 2, 16)
        self.third = nn.Linear(16, 16, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(doubled(self.second(self.first(x))))


class TestRulesOfOnesOwn:
    op = torch.ops.gradrank_tests.doubled.default

    def test_an_op_without_a_rule_gets_one(self):
        args = {"loss": F.mse_loss, "targets": (normal(64, 16),)}
        before = rank_bounds(Custom(), (normal(64, 16),), **args)
        assert before["third.weight"].rank == 16
        assert before.unknown_ops == {"gradrank_tests.doubled": 1}
        register_rule(
            self.op,
            lambda call: call.ops.scaled(call.value("x"), 2.0),
            lambda call, adjoint: [(call["x"], call.ops.scaled(adjoint, 2.0))],
            does="same space",
            because="every entry times two",
        )
        try:
            after = rank_bounds(Custom(), (normal(64, 16),), **args)
            assert [after[name].rank for name in after] == [2, 2, 2]
            assert not after.unknown_ops
            with pytest.raises(ValueError, match="replace=True"):
                register_rule(self.op, lambda call: None, lambda call, adjoint: [])
        finally:
            del RULES[self.op]

    def test_what_is_no_overload_is_refused(self):
        with pytest.raises(ValueError, match="no overload"):
            register_rule(torch.relu, lambda call: None, lambda call, adjoint: [])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class TestUntraceable:
    model = nn.Sequential(nn.Linear(16, 4), nn.Sequential(nn.Linear(4, 4), Branching()), nn.Linear(4, 16))

    def test_the_error_names_the_module_and_the_mend(self):
        with pytest.raises(TraceError, match=r"1\.1 \(Branching\).*untraceable='shape'"):
            rank_bounds(self.model, (torch.randn(8, 16),))

    def test_shapes_alone_bound_it_on_demand(self):
        bounds = rank_bounds(self.model, (torch.randn(8, 16),), untraceable="shape", world_size=2)
        assert [bound.rank for bound in bounds.values()] == [4, 4, 4]
        assert "shape alone" in bounds["0.weight"].reason
        bounds.check_world_size(2)

    def test_another_word_is_refused(self):
        with pytest.raises(ValueError, match="allowed are 'refuse' and 'shape'"):
            rank_bounds(self.model, (torch.randn(8, 16),), untraceable="full")

"""Bases from the weights: they hold every gradient, in one reading of each weight, whatever the weights are."""

import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from architectures import KINDS, draw
from examined import batches, build, loss_of, redraw
from measured import gradients, rank
from recurrent import Elman
from torch import Tensor, nn

from compress import rank_bounds
from compress.bounds.evaluate import Evaluator, _Call, _schedule, orthonormal
from compress.bounds.maps import Linear
from compress.bounds.recipe import Output, Recipe, Step, Stored


def chain(*widths: int, bias: bool = False, activation: type[nn.Module] | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias)] + ([activation()] if activation else [])
    return nn.Sequential(*layers).double()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def outside(model, bounds, found) -> float:
    """The largest share of any gradient that lies outside its bases, which must be orthonormal."""
    worst, parameters = 0.0, dict(model.named_parameters())
    for name, bound in bounds.items():
        basis, gradient = bound.basis(parameters), found[name]
        assert tuple(None if side is None else side.shape[1] for side in basis) == tuple(bound.basis_sizes())
        for side, turned in ((basis.inputs, gradient), (basis.adjoint, gradient.T)):
            if side is None:
                continue
            eye = torch.eye(side.shape[1], dtype=side.dtype)
            assert (side.T @ side - eye).abs().max() < (1e-5 if side.dtype == torch.float32 else 1e-12)
            if gradient.norm() > 1e-12:
                worst = max(worst, float((turned - turned @ side @ side.T).norm() / gradient.norm()))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_networks_drawn_at_random_lie_in_their_bases(kind):
    pick = random.Random(f"bases of {kind}").choice
    for seed in range(3):
        torch.manual_seed(seed)
        network = draw(pick, kind)
        model, loss = build(network), loss_of(network)
        redraw(model)
        drawn = batches(network, model)
        bounds = rank_bounds(
            model,
            drawn[0][0],
            loss=loss,
            targets=drawn[0][1],
            world_size=network.workers,
            accumulation_steps=network.accumulation,
            training=network.training,
            input_rank=network.input_rank,
        )
        found = gradients(model, [lambda m, x=x, t=t, loss=loss: loss(m(*x), *t) for x, t in drawn])
        assert outside(model, bounds, found) < 1e-11, network


def examined(model, x, loss=lambda y: y.square().mean() + y.mean()):
    bounds = rank_bounds(model, (x,), loss=loss)
    return bounds, gradients(model, [lambda m: loss(m(x))])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_long_chains_stay_exact(dtype, limit):
    torch.manual_seed(0)
    model = chain(48, 48, 3, *[48] * 40, bias=True).to(dtype)
    bounds = rank_bounds(model, (normal(64, 48).to(dtype),), loss=lambda y: y.square().mean() + y.mean())
    for _ in range(10):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        x = normal(64, 48).to(dtype)
        found = gradients(model, [lambda m, x=x: m(x).square().mean() + m(x).mean()])
        assert outside(model, bounds, found) < limit


def test_weights_of_lower_rank_than_generic_ones():
    torch.manual_seed(0)
    model = chain(24, 24, 6, 24, 24, 24, bias=True)
    with torch.no_grad():
        model[1].weight[2:4] = 0
        model[2].weight[:, :3] = 0
        model[3].weight.copy_(normal(24, 2) @ normal(2, 24))
        for layer in model:
            layer.bias.zero_()
    assert outside(model, *examined(model, normal(64, 24))) < 1e-12


def test_a_limit_as_wide_as_the_layer_that_no_weights_reach():
    # Two ways back of three dimensions each, and a bias: limits of seven and more in eight, six in truth.
    torch.manual_seed(0)
    model = Elman([16, 8, 12, 3])
    bounds, found = examined(model, normal(24, 3, 16))
    assert any(size is not None for bound in bounds.values() for size in bound.basis_sizes())
    assert outside(model, bounds, found) < 1e-12


def test_factors_count_where_rows_are_added():
    model = chain(16, 16)
    # 2 y − 4 y: without the factor of a square's derivative it would be nothing.
    bounds, found = examined(model, normal(40, 16), lambda y: (y * y).sum() - 2 * y.square().sum())
    assert bounds["0.weight"].rank == rank(found["0.weight"]) == 16


class Learned(nn.Module):
    """A loss with a weight of its own, which the network does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 3).double()

    def forward(self, y: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.map(y), target)


def test_a_weight_of_the_loss_gives_no_basis():
    bounds = rank_bounds(chain(16, 16, 16), (normal(40, 16),), loss=Learned(), targets=(torch.arange(40) % 3,))
    assert bounds["0.weight"].rank <= 3
    assert bounds["0.weight"].basis_sizes() == (None, None)


def test_tied_weights_are_found_under_the_name_that_is_listed():
    model = chain(16, 2, 16, 16, 16)
    model[3].weight = model[2].weight
    bounds, found = examined(model, normal(64, 16))
    assert set(dict(model.named_parameters())) == set(bounds)
    assert outside(model, bounds, found) < 1e-12


def test_the_linear_reading_has_sizes_and_bases_of_its_own():
    torch.manual_seed(0)
    model, plain = chain(16, 16, 2, 16, 16, activation=nn.ReLU), chain(16, 16, 2, 16, 16)
    plain.load_state_dict({f"{int(name[0]) // 2}.weight": weight for name, weight in model.state_dict().items()})
    bound = rank_bounds(model, (normal(64, 16),))["6.weight"]
    assert (bound.basis_sizes(), bound.basis_sizes(linear=True)) == ((None, None), (2, None))
    near = bound.basis(dict(model.named_parameters()), linear=True).inputs
    exact = rank_bounds(plain, (normal(64, 16),))["3.weight"].basis(dict(plain.named_parameters())).inputs
    assert torch.allclose(near @ near.T, exact @ exact.T)


def outputs(bounds):
    recipe = next(iter(bounds.values())).bases.recipe
    return recipe, [side for sides in recipe.exact.values() for side in sides if side is not None]


def test_each_weight_is_read_once_and_only_those_that_matter(monkeypatch):
    model = chain(32, 32, 2, 32, 32, 32, 32, bias=True)
    bounds = rank_bounds(model, (normal(64, 32),), loss=F.mse_loss, targets=(normal(64, 32),))
    read, times = [], _Call._times
    monkeypatch.setattr(
        _Call, "_times", lambda call, X, weight: read.append(weight.data_ptr()) or times(call, X, weight)
    )
    recipe, wanted = outputs(bounds)
    evaluator = Evaluator(recipe, wanted)
    evaluator(dict(model.named_parameters()))
    assert len(read) == len(set(read)) == 2  # two layers behind the layer that leaves the bottleneck, once each
    # Biases before the bottleneck say nothing behind it, and the weights of one side nothing on the other.
    assert evaluator.parameters == {f"{i}.weight" for i in (1, 2, 3, 4)} | {f"{i}.bias" for i in (2, 3, 4)}


def test_products_with_one_weight_wait_for_each_other():
    a, b = Linear(8, 8, "a"), Linear(8, 8, "b")
    steps = [
        Step(Stored("x", 8), (), 2, 8),
        Step(b, (0,), 2, 8),
        Step(Stored("y", 8), (), 2, 8),
        Step(a, (2,), 2, 8),
        Step(b, (3,), 2, 8),
    ]
    assert _schedule(Recipe({}, steps), [Output((1, 4), 4)]) == [[0, 2], [3], [1, 4]]


def test_equal_weights_give_equal_bits_here_and_after_a_pickle():
    model = chain(32, 32, 3, 32, 32, bias=True)
    bounds = rank_bounds(model, (normal(64, 32),), loss=F.mse_loss, targets=(normal(64, 32),))
    weights = dict(model.named_parameters())
    once, again = (Evaluator(*outputs(b))(weights) for b in (bounds, pickle.loads(pickle.dumps(bounds))))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("rows", [3, 5, 40])
def test_orthonormal_columns_hold_all_rows_of_no_higher_rank(rows):
    torch.manual_seed(0)
    low = normal(rows, 3) @ normal(3, 20)
    low[rows // 2] *= 1e-9
    low[0] = 0
    for columns in (3, 5):
        Q = orthonormal(low, min(columns, rows))
        assert torch.allclose(Q.T @ Q, torch.eye(Q.shape[1], dtype=Q.dtype))
        assert (low - low @ Q @ Q.T).norm() < 1e-13 * low.norm()

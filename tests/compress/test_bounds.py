"""Bounds of multi-layer perceptrons beside ranks measured in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measured import gradients, rank
from torch import Tensor, nn

from compress import TraceError, rank_bounds


def mlp(widths: list[int], *, bias: bool, alpha: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide_in, wide_out in itertools.pairwise(widths):
        layers += [nn.Linear(wide_in, wide_out, bias=bias, dtype=torch.float64), nn.LeakyReLU(alpha)]
    return nn.Sequential(*layers[:-1])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def compare(model, loss, batches, *, accumulation_steps=1, input_rank=None):
    """Bounds and measured ranks, by layer; `batches` are (inputs, target), one for each pass."""
    inputs, target = batches[0]
    bounds = rank_bounds(
        model,
        (inputs,),
        loss=loss,
        targets=(target,),
        world_size=len(batches) // accumulation_steps,
        accumulation_steps=accumulation_steps,
        input_rank=input_rank,
    )
    passes = [lambda m, x=x, t=t: loss(m(x), t) for x, t in batches]
    measured = {name: rank(gradient) for name, gradient in gradients(model, passes).items()}
    assert measured.keys() == bounds.keys()
    return [bound.rank for bound in bounds.values()], list(measured.values())


def regression(rows: int, wide_in: int, wide_out: int) -> tuple[Tensor, Tensor]:
    return normal(rows, wide_in), normal(rows, wide_out)


class TestCheckedFigures:
    """Figures known in closed form, which bound and measurement must both give."""

    @pytest.mark.parametrize(("bias", "expected"), [(False, [8, 8, 8, 8]), (True, [8, 8, 8, 9])])
    def test_a_bias_behind_the_bottleneck_adds_one(self, bias, expected):
        model = mlp([64, 64, 8, 64, 64], bias=bias)
        assert compare(model, F.mse_loss, [regression(128, 64, 64)]) == (expected, expected)

    @pytest.mark.parametrize("bias", [False, True])
    def test_cross_entropy_over_ten_classes_leaves_nine(self, bias):
        model = mlp([64, 48, 48, 48, 10], bias=bias)
        batch = (normal(128, 64), torch.randint(0, 10, (128,)))
        assert compare(model, F.cross_entropy, [batch]) == ([9] * 4, [9] * 4)

    def test_an_autoencoder_of_embedded_inputs_has_the_rank_of_the_inputs(self):
        model = mlp([128, 64, 32, 64, 128], bias=False)
        inputs = normal(256, 16) @ normal(16, 128)
        assert compare(model, F.mse_loss, [(inputs, inputs)], input_rank=16) == ([16] * 4, [16] * 4)

    def test_the_rank_of_a_layers_own_weight_does_not_bound_its_gradient(self):
        # Eq. (1) of the paper, as printed, would give 0 here.
        model = nn.Sequential(nn.Linear(64, 64, bias=False, dtype=torch.float64))
        nn.init.zeros_(model[0].weight)
        assert compare(model, F.mse_loss, [regression(128, 64, 64)]) == ([64], [64])

    def test_the_space_does_not_grow_with_workers_but_rows_do(self):
        batches = [regression(3, 64, 64) for _ in range(4)]
        model = mlp([64, 64, 8, 64, 64], bias=False)
        assert compare(model, F.mse_loss, batches) == ([8] * 4, [8] * 4)
        model = mlp([64, 64, 64], bias=False)
        assert compare(model, F.mse_loss, batches) == ([12, 12], [12, 12])
        assert compare(model, F.mse_loss, batches, accumulation_steps=2) == ([12, 12], [12, 12])


class Residual(nn.Module):
    """Linear residual blocks: x + x W."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_linear_residual_blocks_keep_the_rank_of_the_input():
    inputs = normal(64, 5) @ normal(5, 24)
    bounds, measured = compare(Residual(24, 4), F.mse_loss, [(inputs, normal(64, 24))], input_rank=5)
    assert bounds == measured == [5] * 4


def test_a_leaky_slope_below_one_makes_the_bound_full_and_keeps_the_linear_rank():
    model = mlp([32, 32, 4, 32, 32], bias=False, alpha=0.1)
    inputs, target = regression(64, 32, 32)
    bounds = rank_bounds(model, (inputs,), loss=F.mse_loss, targets=(target,))
    assert [bound.rank for bound in bounds.values()] == [32, 4, 4, 32]
    assert [bound.linear_rank for bound in bounds.values()] == [4, 4, 4, 4]


class Odd(nn.Module):
    """Tied, functional and unruly uses of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12, bias=False, dtype=torch.float64)
        self.second = nn.Linear(12, 12, bias=False, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.matrix = nn.Parameter(normal(12, 6))
        self.scale = nn.Parameter(normal(1, 6))
        self.unused = nn.Parameter(normal(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(self.second(self.first(x)) @ self.matrix) * self.scale


class TestTraps:
    """Graphs that are easily bounded too low."""

    def test_uses_of_tied_weights_add_up(self):
        bounds, measured = compare(Odd(), F.mse_loss, [regression(2, 12, 6)])
        assert measured == [2, 1, 0, 4]  # matrix, scale, unused, and first, which second is too
        assert bounds == [2, 1, 0, 4]

    def test_an_op_without_a_rule_is_full_and_named(self):
        inputs, target = regression(32, 12, 6)
        bounds = rank_bounds(Odd(), (inputs,), loss=F.mse_loss, targets=(target,))
        assert "special_i0" in bounds["matrix"].reason
        assert bounds.unknown_ops["special_i0"] == 1
        assert "the loss does not depend on it" in bounds["unused"].reason

    def test_a_captured_tensor_counts_as_arbitrary(self):
        model = mlp([16, 16], bias=False)
        captured = normal(64, 16)
        inputs = normal(64, 4) @ normal(4, 16)
        bounds = rank_bounds(model, (inputs,), loss=lambda y: F.mse_loss(y, captured), input_rank=4)
        assert bounds["0.weight"].rank == 4  # by the input; the adjoint is full
        bounds = rank_bounds(model, (inputs,), loss=lambda y: F.mse_loss(y, captured))
        assert bounds["0.weight"].rank == 16

    def test_a_target_that_is_the_input_is_recognised_and_another_is_not(self):
        inputs = normal(64, 4) @ normal(4, 16)
        model = mlp([16, 16, 16], bias=False)
        same = rank_bounds(model, (inputs,), loss=F.mse_loss, targets=(inputs,), input_rank=4)
        other = rank_bounds(model, (inputs,), loss=F.mse_loss, targets=(inputs.clone(),), input_rank=4)
        assert "input" in same["2.weight"].reason
        assert same["0.weight"].rank == other["0.weight"].rank == 4

    def test_soft_targets_that_depend_on_weights_are_followed(self):
        model = mlp([8, 8], bias=False)

        def distil(output: Tensor) -> Tensor:
            return F.cross_entropy(torch.zeros_like(output), output.softmax(dim=1)) + output.square().sum()

        inputs = normal(32, 8)
        bound = rank_bounds(model, (inputs,), loss=distil)["0.weight"].rank
        assert bound >= rank(gradients(model, [lambda m: distil(m(inputs))])["0.weight"])

    def test_the_loss_of_the_output_of_the_model_is_used_without_one(self):
        class WithLoss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = mlp([8, 12, 3], bias=False)

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits = self.net(x)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        labels = torch.randint(0, 3, (32,))
        assert rank_bounds(WithLoss(), (normal(32, 8), labels))["net.0.weight"].rank == 2

    def test_without_any_loss_the_adjoint_is_full_and_the_reason_says_so(self):
        bound = rank_bounds(mlp([8, 3], bias=False), (normal(32, 8),))["0.weight"]
        assert bound.rank == 3
        assert "no loss" in bound.reason


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    weights = [parameter.clone() for parameter in model.parameters()]
    rank_bounds(model, (torch.randn(3, 4),), training=False)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_dropout_narrows_nothing_when_off_and_everything_when_on():
    model = nn.Sequential(nn.Linear(16, 2), nn.Dropout(0.5), nn.Linear(2, 16), nn.Dropout(0.5), nn.Linear(16, 16))
    batch = {"loss": F.mse_loss, "targets": (torch.randn(64, 16),)}
    assert rank_bounds(model, (torch.randn(64, 16),), training=False, **batch)["4.weight"].rank == 3
    assert rank_bounds(model, (torch.randn(64, 16),), training=True, **batch)["4.weight"].rank == 16


def test_tensors_on_the_meta_device_do():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64))
        bounds = rank_bounds(model, (torch.randn(32, 64),), loss=F.mse_loss, targets=(torch.randn(32, 64),))
    assert [bound.rank for bound in bounds.values()] == [8, 8]


class TestRefusals:
    def test_another_world_size_is_refused_with_the_mend(self):
        bounds = rank_bounds(mlp([4, 4], bias=False), (normal(2, 4),), world_size=2)
        with pytest.raises(ValueError, match=r"world_size=2.*rank_bounds\(\.\.\., world_size=4\)"):
            bounds.check_world_size(4)

    @pytest.mark.parametrize("name", ["world_size", "accumulation_steps", "input_rank"])
    def test_counts_below_one_are_refused(self, name):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            rank_bounds(mlp([4, 4], bias=False), (normal(2, 4),), **{name: 0})

    def test_a_loss_that_is_no_scalar_is_refused(self):
        with pytest.raises(TraceError, match="one scalar"):
            rank_bounds(mlp([4, 4], bias=False), (normal(2, 4),), loss=lambda y: y)

    def test_what_cannot_be_traced_is_told(self):
        class Branches(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if float(x.sum()) > 0 else -x

        with pytest.raises(TraceError, match="cannot trace Branches"):
            rank_bounds(Branches(), (normal(2, 4),))


class Drawn(nn.Module):
    """A random network: linear layers with residuals, biases and activations here and there."""

    def __init__(self, blocks: list[dict], wide_in: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.layers = nn.ModuleList()
        for block in blocks:
            self.layers.append(nn.Linear(wide_in, block["width"], bias=block["bias"], dtype=torch.float64))
            wide_in = block["width"]

    def forward(self, x: Tensor) -> Tensor:
        for block, layer in zip(self.blocks, self.layers, strict=True):
            y = layer(x)
            if block["alpha"] is not None:
                y = F.leaky_relu(y, block["alpha"])
            x = x + 0.5 * y if block["residual"] and x.shape == y.shape else y
        return x


BLOCK = st.fixed_dictionaries(
    {
        "width": st.sampled_from([1, 2, 3, 6, 10]),
        "bias": st.booleans(),
        "alpha": st.sampled_from([None, None, 1.0, 0.3]),
        "residual": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=st.lists(BLOCK, min_size=1, max_size=6),
    wide_in=st.sampled_from([2, 6, 10]),
    input_rank=st.sampled_from([None, 1, 3]),
    loss=st.sampled_from(["cross_entropy", "mse", "written_out", "own_input"]),
    rows=st.sampled_from([1, 2, 5, 24]),
    workers=st.integers(1, 3),
    accumulation=st.integers(1, 2),
)
def test_no_measured_rank_exceeds_its_bound(blocks, wide_in, input_rank, loss, rows, workers, accumulation):
    torch.manual_seed(0)
    if loss == "own_input":
        blocks = [*blocks, {"width": wide_in, "bias": False, "alpha": None, "residual": False}]
    model = Drawn(blocks, wide_in)
    wide_out = blocks[-1]["width"]
    known = input_rank if input_rank is not None and input_rank < wide_in else None
    embedding = normal(known, wide_in) if known else torch.eye(wide_in, dtype=torch.float64)

    def batch() -> tuple[Tensor, Tensor]:
        inputs = normal(rows, len(embedding)) @ embedding
        if loss == "own_input":
            return inputs, inputs
        return inputs, torch.randint(0, wide_out, (rows,)) if loss == "cross_entropy" else normal(rows, wide_out)

    functions = {
        "cross_entropy": F.cross_entropy,
        "mse": F.mse_loss,
        "own_input": F.mse_loss,
        "written_out": lambda y, t: 3 * ((y - t) ** 2).mean() + (y - t).pow(2).sum() / 7,
    }
    bounds, measured = compare(
        model,
        functions[loss],
        [batch() for _ in range(workers * accumulation)],
        accumulation_steps=accumulation,
        input_rank=known,
    )
    assert all(found <= bound for found, bound in zip(measured, bounds, strict=True))
    if all(block["alpha"] in (None, 1.0) for block in blocks):
        # For linear networks the bound is reached wherever it is not simply full.
        for name, found, bound in zip(dict(model.named_parameters()), measured, bounds, strict=False):
            assert found == bound, name

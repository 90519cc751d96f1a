"""Multi-layer perceptrons by their knobs, and the metrics of tasks."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models import MLP, Classification, Reconstruction, Regression, Signature, TokenPrediction
from models.tasks import NOT_PREDICTED


def vectors(features: int, outputs: int) -> Signature:
    return Signature("features", (features,), outputs)


def shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in network.parameters()]


class TestMLP:
    def test_the_bottleneck_is_the_middle_hidden_layer(self):
        network = MLP(depth=4, width=64, bottleneck=8, bias=False).build(vectors(20, 10))
        assert shapes(network) == [(64, 20), (8, 64), (64, 8), (10, 64)]

    @pytest.mark.parametrize("widths", [(3,), (3, 20, 20), (20, 3, 20), (20, 20, 3)])
    def test_widths_put_a_bottleneck_anywhere(self, widths):
        config = MLP(widths=widths, bias=False)
        sizes = (12, *widths, 5)
        assert shapes(config.build(vectors(12, 5))) == list(zip(sizes[1:], sizes, strict=False))
        assert config.knobs["bottleneck"] == 3

    def test_images_are_taken_as_vectors(self):
        assert MLP(widths=(7,), bias=False).build(Signature("features", (64,), 10))(torch.zeros(2, 64)).shape == (2, 10)

    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_alpha_is_the_slope_for_negative_inputs(self, alpha):
        network = MLP(widths=(1,), alpha=alpha, bias=False).build(vectors(1, 1))
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(1.0)
        assert network(torch.tensor([[-2.0], [2.0]])).flatten().tolist() == pytest.approx([-2 * alpha, 2])

    @pytest.mark.parametrize(
        "settings",
        [
            {"alpha": 1.1},
            {"alpha": -0.1},
            {"depth": 1},
            {"width": 0},
            {"bottleneck": 0},
            {"widths": ()},
            {"widths": (8, 0)},
            {"with": 8},
        ],
    )
    def test_knobs_out_of_range_or_unknown_are_refused(self, settings):
        with pytest.raises(ValidationError, match=next(iter(settings))):
            MLP(**settings)

    @pytest.mark.parametrize("beside", [{"depth": 3}, {"width": 9}, {"bottleneck": 2}])
    def test_widths_beside_what_they_stand_for_are_refused(self, beside):
        with pytest.raises(ValidationError, match=f"widths is given beside {next(iter(beside))}; give either"):
            MLP(widths=(8, 8), **beside)


class TestTiedAutoencoder:
    config = MLP(widths=(7, 3, 7), tied=True, alpha=0.5)

    def test_the_decoder_uses_the_encoders_weights_transposed(self):
        network = self.config.build(vectors(10, 10))
        assert shapes(network) == [(7, 10), (7,), (3, 7), (3,), (7,), (10,)]
        first, first_bias, second, second_bias, third_bias, fourth_bias = network.parameters()
        inputs = torch.randn(5, 10)
        phi = nn.LeakyReLU(0.5)
        code = phi(phi(inputs @ first.T + first_bias) @ second.T + second_bias)
        expected = phi(code @ second + third_bias) @ first + fourth_bias
        assert torch.allclose(network(inputs), expected, atol=1e-6)

    def test_gradients_come_from_both_uses(self):
        torch.manual_seed(0)
        network = MLP(widths=(3,), tied=True, bias=False).build(vectors(10, 10)).double()
        (weight,) = network.parameters()
        inputs = torch.randn(5, 10, dtype=torch.float64)
        nn.functional.mse_loss(network(inputs), inputs).backward()
        error = 2 * (inputs @ weight.T @ weight - inputs) / inputs.numel()
        encoding, decoding = weight @ error.T @ inputs, weight @ inputs.T @ error
        assert torch.allclose(weight.grad, encoding + decoding)
        assert not torch.allclose(weight.grad, encoding)

    def test_its_state_goes_into_a_checkpoint_and_back(self):
        torch.manual_seed(0)
        one, other = (self.config.build(vectors(10, 10)) for _ in range(2))
        inputs = torch.randn(5, 10)
        assert not torch.equal(one(inputs), other(inputs))
        other.load_state_dict(one.state_dict())
        assert torch.equal(one(inputs), other(inputs))

    @pytest.mark.parametrize("knobs", [{"widths": (7, 3, 6)}, {"widths": (7, 7)}, {"depth": 3}])
    def test_widths_that_cannot_be_tied_are_refused(self, knobs):
        with pytest.raises(ValidationError, match="an odd number of hidden widths that read the same backwards"):
            MLP(tied=True, **knobs)

    def test_data_that_are_not_reconstructed_are_refused(self):
        with pytest.raises(ValueError, match="takes data to be reconstructed; found 10 inputs and 4 outputs"):
            self.config.build(vectors(10, 4))


TASKS = {
    "classification": (Classification(), (11, 4), torch.randint(0, 4, (11,))),
    "reconstruction": (Reconstruction(), (11, 4), torch.randn(11, 4)),
    "regression": (Regression(), (11, 6, 4), torch.randn(11, 6, 4)),
    "every token": (TokenPrediction(), (11, 6, 4), torch.randint(0, 4, (11, 6))),
    "some tokens": (
        TokenPrediction(),
        (11, 6, 4),
        torch.where(torch.rand(11, 6) < 0.3, torch.tensor(2), NOT_PREDICTED),
    ),
}


class TestTasks:
    @pytest.mark.parametrize("name", TASKS)
    def test_sums_over_uneven_shares_give_the_metrics_of_the_whole(self, name):
        task, shape, target = TASKS[name]
        output = torch.randn(shape)
        whole = task.summarise(task.sums(output, target))
        parts = sum(task.sums(output[share], target[share]) for share in (slice(0, 3), slice(3, 11)))
        assert task.summarise(parts) == pytest.approx(whole)
        assert whole[0] == pytest.approx(float(task.loss(output, target)), rel=1e-6)

    def test_a_share_in_which_nothing_is_predicted_adds_nothing(self):
        task = TokenPrediction()
        output, target = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
        nothing = task.sums(torch.randn(2, 6, 5), torch.full((2, 6), NOT_PREDICTED))
        assert nothing.tolist() == [0, 0, 0, 0]
        sums = task.sums(output, target)
        assert task.summarise(sums + nothing) == task.summarise(sums)

    def test_metrics_are_what_they_are_called(self):
        output, target = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]), torch.tensor([0, 1, 1])
        assert Classification().summarise(Classification().sums(output, target))[1] == pytest.approx(2 / 3)
        wrong = torch.zeros(3, 2)
        assert Regression().summarise(Regression().sums(wrong, output))[1] == pytest.approx(1)
        assert Regression().summarise(Regression().sums(1.5 * output, output))[1] == pytest.approx(0.5)
        even = torch.zeros(1, 3, 7)
        tokens = torch.tensor([[1, NOT_PREDICTED, 4]])
        assert TokenPrediction().summarise(TokenPrediction().sums(even, tokens))[1] == pytest.approx(7)

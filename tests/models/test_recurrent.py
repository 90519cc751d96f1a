"""Recurrent networks: what they compute, the state that they carry, and their initial weights."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models import GRU, LSTM, Elman, Signature
from models.recurrent import ElmanLayer, Recurrent, RecurrentConfig

KINDS = [Elman, GRU, LSTM]
SERIES = Signature("series", (12, 5), 3, each_step=True)
LAST = Signature("series", (12, 5), 3)


def made(config: RecurrentConfig, signature: Signature = SERIES) -> Recurrent:
    torch.manual_seed(0)
    return config.build(signature).double()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_an_elman_layer_computes_what_torchs_does():
    torch.manual_seed(0)
    ours, theirs = ElmanLayer(5, 7, nn.Tanh(), orthogonal=True, bias=True), nn.RNN(5, 7, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.input.weight)
        theirs.weight_hh_l0.copy_(ours.recurrent.weight)
        theirs.bias_ih_l0.copy_(ours.input.bias)
        theirs.bias_hh_l0.zero_()
    series, state = torch.randn(4, 6, 5), torch.randn(4, 7)
    hidden, (after,) = ours(series, (state,))
    expected, last = theirs(series, state[None])
    assert torch.allclose(hidden, expected, atol=1e-6)
    assert torch.allclose(after, last[0], atol=1e-6)


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("length", [1, 3, 4])
def test_windows_with_the_state_carried_on_give_what_the_whole_series_gives(config, length):
    network, series = made(config(widths=(6, 4, 6))), normal(4, 12, 5)
    state, outputs = network.initial_state(4), []
    for start in range(0, 12, length):
        output, *state = network(series[:, start : start + length], *state)
        outputs.append(output)
    assert torch.allclose(torch.cat(outputs, 1), network(series))
    without = [network(series[:, start : start + length]) for start in range(0, 12, length)]
    assert not torch.allclose(torch.cat(without, 1), network(series))


@pytest.mark.parametrize(("config", "states"), [(Elman, 1), (GRU, 1), (LSTM, 2)])
def test_the_initial_state_is_zero_for_each_layer_in_the_weights_type(config, states):
    state = made(config(widths=(6, 4))).initial_state(3)
    assert [part.shape for part in state] == [(3, 6)] * states + [(3, 4)] * states
    assert all(part.dtype == torch.float64 and not part.any() for part in state)


@pytest.mark.parametrize("config", KINDS)
def test_each_step_is_read_out_or_the_last_alone(config):
    series = normal(4, 12, 5)
    every, last = made(config(), SERIES)(series), made(config(), LAST)(series)
    assert every.shape == (4, 12, 3)
    assert torch.equal(every[:, -1], last)


@pytest.mark.parametrize("config", KINDS)
def test_what_comes_later_does_not_change_what_came_before(config):
    network, series = made(config()), normal(2, 12, 5)
    other = torch.cat([series[:, :7], normal(2, 5, 5)], 1)
    assert torch.allclose(network(series)[:, :7], network(other)[:, :7])
    assert not torch.allclose(network(series)[:, 7], network(other)[:, 7])


@pytest.mark.parametrize("config", KINDS)
def test_tokens_pass_an_embedding(config):
    network = made(config(widths=(6, 4)), Signature("tokens", (8,), 30, each_step=True, vocabulary=30))
    assert network(torch.randint(0, 30, (2, 8))).shape == (2, 8, 30)
    assert network.embedding.weight.shape == (30, 6)


@pytest.mark.parametrize("config", KINDS)
def test_recurrent_weights_begin_orthogonal_gate_by_gate_or_as_torch_has_them(config):
    gates = {Elman: 1, GRU: 3, LSTM: 4}[config]
    for init in ("orthogonal", "uniform"):
        layer = made(config(layers=1, width=9, recurrent_init=init)).layers[0]
        weights = layer.recurrent.weight if config is Elman else layer.cell.weight_hh_l0
        assert weights.shape == (9 * gates, 9)
        for gate in weights.split(9):
            assert torch.allclose(gate @ gate.T, torch.eye(9).double(), atol=1e-5) == (init == "orthogonal")
    assert len({gate[0, 0].item() for gate in weights.split(9)}) == gates


@pytest.mark.parametrize("config", KINDS)
def test_biases_are_the_layers_and_the_readouts(config):
    for bias in (True, False):
        names = [name for name, _ in made(config(layers=2, bias=bias)).named_parameters() if "bias" in name]
        assert bool(names) == bias
        assert ("readout.bias" in names) == bias


@pytest.mark.parametrize("config", KINDS)
def test_widths_are_of_the_layers_and_the_bottleneck_is_the_middle_one(config):
    assert [layer.hidden for layer in made(config(widths=(6, 2, 5))).layers] == [6, 2, 5]
    assert [layer.hidden for layer in made(config(layers=3, width=6, bottleneck=2)).layers] == [6, 2, 6]
    assert config(widths=(6, 2, 5)).knobs == {"bottleneck": 2, "sequence_length": 0, "alpha": 1.0}
    assert config(sequence_length=8).length == config(sequence_length=8).knobs["sequence_length"] == 8


@pytest.mark.parametrize(
    ("knobs", "slope"), [({"alpha": 0.25}, 0.25), ({"alpha": 1.0}, 1), ({"activation": "identity"}, 1)]
)
def test_an_elman_networks_activation_has_the_slope_asked_for(knobs, slope):
    network = made(Elman(widths=(1,), bias=False, **knobs), Signature("series", (1, 1), 1))
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1.0)
    assert [float(network(torch.full((1, 1, 1), x).double())) for x in (-2.0, 2.0)] == [-2 * slope, 2]
    assert Elman(**knobs).knobs["alpha"] == slope


def test_a_hyperbolic_tangent_is_far_from_linear_to_studies():
    assert Elman(activation="tanh").knobs["alpha"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh", "alpha": 0.5}, "alpha is 0.5, and activation tanh has no slope; leaky_relu has"),
        ({"widths": (8, 8), "layers": 2}, "widths is given beside layers; give either"),
        ({"widths": ()}, "widths"),
        ({"sequence_length": 0}, "sequence_length"),
        ({"recurrent_init": "zeros"}, "recurrent_init"),
        ({"depth": 3}, "depth"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_knobs_that_cannot_be_or_are_unknown_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Elman(**settings)


@pytest.mark.parametrize("config", [GRU, LSTM])
def test_gated_networks_have_no_slope(config):
    with pytest.raises(ValidationError, match="alpha"):
        config(alpha=0.5)

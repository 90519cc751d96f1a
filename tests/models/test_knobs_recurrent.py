"""What the knobs of recurrent networks do to bounds, and to gradients' ranks."""

import pytest
from knobs import Ranks, ranks, ranks_of_settings, reached

from models import GRU, LSTM, Classification, Elman, Signature, TokenPrediction


def series(steps: int, features: int = 64, outputs: int = 64, each_step: bool = False) -> Signature:
    return Signature("series", (steps, features), outputs, each_step=each_step)


def wide(found: dict[str, Ranks], names: dict[str, int]) -> dict[str, int]:
    return {name: reached(found)[name] for name in names}


class TestElman:
    @pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
    def test_steps_widen_a_bottleneck_into_a_krylov_space(self, steps):
        """Input weights before the bottleneck 2T, recurrent ones 2(T − 1), the bottleneck's own 2."""
        config = Elman(widths=(64, 2, 64), bias=False)
        expected = {
            "layers.0.input.weight": min(64, 2 * steps),
            "layers.0.recurrent.weight": min(64, 2 * (steps - 1)),
            "layers.1.input.weight": 2,
            "layers.1.recurrent.weight": min(2, 2 * (steps - 1)),
        }
        assert wide(ranks(config, series(steps), 96), expected) == expected

    def test_the_bottleneck_is_the_middle_layer(self):
        config = Elman(layers=3, width=20, bottleneck=2, bias=False)
        expected = {"layers.0.input.weight": 6, "layers.1.input.weight": 2, "layers.2.input.weight": 2}
        assert wide(ranks(config, series(3, 20, 20), 60), expected) == expected

    def test_a_carried_state_is_one_more_input(self):
        config, rows = Elman(widths=(64, 2, 64), bias=False), 12
        expected = {
            "layers.0.recurrent.weight": 10,
            "layers.1.recurrent.weight": 2,
            "layers.2.recurrent.weight": 5 * rows,
        }
        assert wide(ranks(config, series(5), rows, carried=True), expected) == expected

    @pytest.mark.parametrize(("length", "expected"), [(None, 2 * 9), (5, 2 * 5), (2, 2 * 2), (1, 2)])
    def test_sequence_length_is_of_truncated_backpropagation(self, length, expected):
        """Whole series of ten points lose the first step, whose state is zero; windows carry a state of their own."""
        found = ranks_of_settings(
            model={"kind": "elman", "widths": [40, 2, 40], "bias": False, "sequence_length": length},
            data={"kind": "sinusoids", "points": 10, "features": 24, "samples": 200},
        )
        assert reached(found)["layers.0.recurrent.weight"] == expected

    @pytest.mark.parametrize(("outputs", "task"), [(3, None), (4, Classification())])
    def test_few_outputs_of_the_last_step_are_a_bottleneck_too(self, outputs, task):
        config = Elman(layers=1, width=30, bias=False)
        expected = {"layers.0.input.weight": 12, "layers.0.recurrent.weight": 9, "readout.weight": 3}
        assert wide(ranks(config, series(4, 30, outputs), 60, task), expected) == expected

    @pytest.mark.parametrize(("bias", "expected"), [(False, 6), (True, 7)])
    def test_a_bias_adds_one_behind_the_bottleneck(self, bias, expected):
        found = ranks(Elman(widths=(2, 20), bias=bias), series(3, 20, 20), 60)
        assert reached(found)["layers.0.input.weight"] == 2
        assert reached(found)["readout.weight"] == expected

    @pytest.mark.parametrize("knobs", [{"alpha": 0.5}, {"alpha": 0.0}, {"activation": "tanh"}])
    def test_other_activations_are_full_and_tell_the_linear_rank(self, knobs):
        found = ranks(Elman(widths=(20, 2, 20), bias=False, **knobs), series(3, 20, 20), 60)
        first, behind = found["layers.0.input.weight"], found["layers.2.input.weight"]
        assert first == Ranks(bound=20, linear=6, measured=20)
        assert (behind.bound, behind.linear) == (2, 2)
        linear = ranks(Elman(widths=(20, 2, 20), bias=False, activation="identity"), series(3, 20, 20), 60)
        assert linear["layers.0.input.weight"] == Ranks(bound=6, linear=6, measured=6)

    def test_rows_are_samples_times_steps(self):
        config = Elman(layers=1, width=40, alpha=0.0)
        for steps in (1, 4, 7):
            found = ranks(config, series(steps, 40, 40, each_step=True), 3)
            assert found["layers.0.input.weight"] == Ranks(3 * steps, 3 * steps, 3 * steps)
            assert found["layers.0.recurrent.weight"].bound == 3 * (steps - 1)

    def test_recurrent_weights_drawn_uniformly_obey_the_same_bounds(self):
        one, other = (
            ranks(Elman(widths=(24, 2, 24), bias=False, recurrent_init=init), series(3, 24, 24), 60)
            for init in ("orthogonal", "uniform")
        )
        assert one == other


class TestGated:
    @pytest.mark.parametrize("config", [GRU, LSTM])
    @pytest.mark.parametrize("steps", [1, 5])
    def test_rows_bound_by_samples_times_steps(self, config, steps):
        found = ranks(config(layers=1, width=24), series(steps, 32, 24, each_step=True), 2)
        expected = {"layers.0.cell.weight_ih_l0": 2 * steps, "layers.0.cell.weight_hh_l0": 2 * (steps - 1)}
        assert wide(found, expected) == expected

    @pytest.mark.parametrize("config", [GRU, LSTM])
    def test_a_carried_state_has_a_row_of_its_own(self, config):
        found = ranks(config(layers=1, width=24), series(5, 32, 24, each_step=True), 2, carried=True)
        assert reached(found)["layers.0.cell.weight_hh_l0"] == 10

    @pytest.mark.parametrize("config", [GRU, LSTM])
    def test_a_bottleneck_bounds_what_enters_and_leaves_it(self, config):
        found = reached(ranks(config(layers=3, width=16, bottleneck=2), series(4, 16, 16), 60))
        gates = 3 if config is GRU else 4
        assert found["layers.2.cell.weight_ih_l0"] == found["layers.1.cell.weight_hh_l0"] == 2
        assert found["layers.1.cell.weight_ih_l0"] == 2 * gates

    @pytest.mark.parametrize("kind", ["gru", "lstm"])
    def test_windows_of_sinusoids_obey_their_bounds(self, kind):
        for length, rows in ((None, 3 * 11), (4, 3 * 4), (1, 3)):
            found = ranks_of_settings(
                model={"kind": kind, "layers": 1, "width": 40, "sequence_length": length},
                data={"kind": "sinusoids", "points": 12, "features": 40, "samples": 100},
                train={"batch_size": 3},
            )
            assert found["layers.0.cell.weight_hh_l0"].bound == rows
            assert found["layers.0.cell.weight_hh_l0"].measured > 0


class TestText:
    @pytest.mark.parametrize("config", [Elman, GRU, LSTM])
    def test_tokens_have_a_row_for_each_position(self, config):
        signature = Signature("tokens", (5,), 60, each_step=True, vocabulary=60)
        found = ranks(config(layers=1, width=40), signature, 2, TokenPrediction())
        assert found["embedding.weight"].bound == found["readout.weight"].bound == 10

    def test_a_bottleneck_bounds_the_embedding(self):
        signature = Signature("tokens", (3,), 60, each_step=False, vocabulary=60)
        found = reached(ranks(Elman(widths=(20, 2, 20), bias=False), signature, 80, Classification()))
        assert found["layers.1.input.weight"] == 2
        assert found["embedding.weight"] == 2 * 3

"""What the knobs of multi-layer perceptrons, of data and of training do to bounds, and to gradients' ranks."""

import pytest
from knobs import ranks, ranks_of_settings, reached

from models import MLP, Classification, Signature

LAYERS = [f"{2 * number}.weight" for number in range(5)]


def vectors(features: int, outputs: int) -> Signature:
    return Signature("features", (features,), outputs)


def by_layer(found) -> list[int]:
    """Bounds that were reached, in the order of layers."""
    return [reached(found)[name] for name in LAYERS if name in found]


class TestMLP:
    @pytest.mark.parametrize("bottleneck", [2, 5, 8])
    def test_the_bottleneck_bounds_all_layers(self, bottleneck):
        config = MLP(depth=4, width=24, bottleneck=bottleneck, bias=False)
        assert by_layer(ranks(config, vectors(24, 24), 60)) == [bottleneck] * 4

    def test_a_bias_adds_one_behind_the_bottleneck(self):
        config = MLP(depth=4, width=24, bottleneck=5)
        assert by_layer(ranks(config, vectors(24, 24), 60)) == [5, 5, 5, 6]

    def test_without_a_bottleneck_the_width_bounds(self):
        for width in (7, 24):
            config = MLP(depth=3, width=width, bias=False)
            assert by_layer(ranks(config, vectors(24, 24), 60)) == [width] * 3

    @pytest.mark.parametrize(
        ("widths", "expected"),
        [
            ((5, 24, 24), [5, 5, 6, 6]),
            ((24, 5, 24), [5, 5, 5, 6]),
            ((24, 24, 5), [5, 5, 5, 5]),
            ((7, 24, 5), [5, 5, 5, 5]),
            ((5, 24, 7), [5, 5, 6, 6]),
        ],
    )
    def test_a_bottleneck_is_anywhere_that_widths_put_it(self, widths, expected):
        assert by_layer(ranks(MLP(widths=widths), vectors(24, 24), 60)) == expected

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
    def test_a_slope_below_one_is_full_and_tells_the_linear_rank(self, alpha):
        config = MLP(depth=4, width=24, bottleneck=5, alpha=alpha, bias=False)
        found = ranks(config, vectors(24, 24), 200)
        assert [found[name].bound for name in LAYERS[:4]] == [24, 5, 5, 24]
        assert [found[name].linear for name in LAYERS[:4]] == [5] * 4
        assert found["0.weight"].measured == 24
        assert found["6.weight"].measured > 5

    def test_a_tied_autoencoder_is_as_wide_as_its_code(self):
        config = MLP(widths=(20, 6, 20), tied=True, bias=False)
        assert reached(ranks(config, vectors(24, 24), 60)) == {"encoder.0.weight": 6, "encoder.1.weight": 6}
        biased = MLP(widths=(20, 6, 20), tied=True)
        assert reached(ranks(biased, vectors(24, 24), 60)) == {"encoder.0.weight": 7, "encoder.1.weight": 6}

    def test_both_uses_of_a_tied_weight_count(self):
        """One row gives rank one to the encoder's use, and one to the decoder's."""
        config = MLP(widths=(20, 6, 20), tied=True)
        assert set(reached(ranks(config, vectors(24, 24), 1)).values()) == {2}

    @pytest.mark.parametrize(("rows", "passes"), [(1, 1), (3, 1), (3, 4)])
    def test_rows_of_all_passes_bound(self, rows, passes):
        found = ranks(MLP(depth=3, width=24, alpha=0.0, bias=False), vectors(24, 24), rows, passes=passes)
        assert {r.bound for r in found.values()} == {rows * passes}
        assert found["0.weight"].measured == rows * passes


class TestData:
    @pytest.mark.parametrize("outputs", [2, 6, 12])
    def test_classes_bound_by_one_less(self, outputs):
        config = MLP(depth=3, width=24, bias=False)
        assert by_layer(ranks(config, vectors(24, outputs), 60, Classification())) == [outputs - 1] * 3

    def test_samples_in_few_dimensions_bound_an_autoencoder(self):
        found = ranks_of_settings(
            model={"kind": "mlp", "width": 128, "bias": False},
            data={"kind": "gaussian", "features": 128, "rank": 16, "samples": 500},
        )
        assert by_layer(found) == [16] * 4

    @pytest.mark.parametrize(("rank", "expected"), [(2, [2, 3, 3, 3]), (9, [4, 4, 4, 5])])
    def test_the_fewer_of_dimensions_and_bottleneck_bound(self, rank, expected):
        """Biases together add one to what comes in, and nothing to what comes back."""
        found = ranks_of_settings(
            model={"kind": "mlp", "width": 24, "bottleneck": 4},
            data={"kind": "gaussian", "features": 24, "rank": rank, "samples": 500, "mean": 1.0},
        )
        assert by_layer(found) == expected

    @pytest.mark.parametrize("outputs", [1, 3, 7])
    def test_a_regression_onto_few_features_bounds_by_as_many(self, outputs):
        found = ranks_of_settings(
            model={"kind": "mlp", "width": 24},
            data={"kind": "gaussian", "features": 24, "samples": 500, "task": "regression", "outputs": outputs},
        )
        assert by_layer(found) == [outputs] * 4

    @pytest.mark.parametrize(("components", "separation"), [(3, 4.0), (6, 1.0)])
    def test_clusters_bound_as_classes_do(self, components, separation):
        data = {"kind": "gaussian", "features": 24, "samples": 500, "task": "classification"}
        data |= {"components": components, "separation": separation}
        found = ranks_of_settings(model={"kind": "mlp", "width": 24}, data=data)
        assert by_layer(found) == [components - 1] * 4

    @pytest.mark.parametrize(("workers", "accumulation", "expected"), [(1, 1, 4), (2, 1, 8), (2, 3, 24)])
    def test_workers_and_accumulation_steps_add_rows_of_their_own(self, workers, accumulation, expected):
        found = ranks_of_settings(
            model={"kind": "mlp", "width": 32, "alpha": 0.0, "bias": False},
            data={"kind": "gaussian", "features": 32, "samples": 500},
            train={"batch_size": 4 * workers * accumulation, "accumulation_steps": accumulation},
            cluster={"workers": workers},
        )
        assert {r.bound for r in found.values()} == {expected}
        assert found["0.weight"].measured == expected


ROWS = "tests.support.own_data:one_direction"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({"kind": "mlp", "widths": [12]}, [1, 4, 4]),
        ({"kind": "elman", "widths": [12]}, [2, 4, 4]),
        ({"kind": "elman", "widths": [12], "activation": "tanh", "sequence_length": 1}, [2, 5]),
    ],
    ids=["images as vectors", "images row by row", "windows that begin with a state"],
)
def test_the_rank_of_inputs_is_not_taken_for_that_of_others(model, shape):
    """Measured ranks above their bounds would fail."""
    found = ranks_of_settings(model=model, data={"kind": ROWS, "shape": shape}, train={"batch_size": 16})
    assert max(r.measured for r in found.values()) >= 2

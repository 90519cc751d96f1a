"""What the knobs of transformers do to bounds, and to gradients' ranks."""

import pytest
from knobs import Ranks, ranks, reached

from models import BERT, XLM, Signature, TokenPrediction

LAYER = "bert.encoder.layer.0."
POSITIONS = "bert.embeddings.position_embeddings.weight"


def predicted(length: int, rows: int, **knobs: object) -> dict[str, Ranks]:
    config = BERT(layers=1, heads=2, sequence_length=length, **{"hidden": 16, "alpha": 1.0} | knobs)
    return ranks(config, Signature("tokens", (length,), 60, each_step=True, vocabulary=60), rows, TokenPrediction())


@pytest.mark.parametrize("length", [2, 6, 10])
def test_positions_of_one_piece_of_text_are_its_rows(length):
    """Scores of a query are shared by keys that sum to zero: one row less."""
    found = reached(predicted(length, 1))
    expected = {
        POSITIONS: length,
        LAYER + "attention.self.value.weight": length,
        LAYER + "attention.self.key.weight": length - 1,
        LAYER + "intermediate.dense.weight": length,
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("hidden", [8, 16])
def test_the_hidden_state_is_a_bottleneck_less_what_norms_centre(hidden):
    found = reached(predicted(20, 4, hidden=hidden))
    assert found["bert.embeddings.word_embeddings.weight"] == hidden
    expected = [POSITIONS, LAYER + "attention.output.dense.weight", LAYER + "output.dense.weight"]
    assert {name: found[name] for name in expected} == dict.fromkeys(expected, hidden - 1)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5])
def test_a_bend_in_the_feed_forward_layer_is_full_and_tells_the_linear_rank(alpha):
    weight = LAYER + "intermediate.dense.weight"
    assert predicted(20, 4)[weight] == Ranks(bound=15, linear=15, measured=15)
    assert predicted(20, 4, alpha=alpha)[weight] == Ranks(bound=16, linear=15, measured=16)


def test_dropout_makes_centred_spaces_full():
    weight = LAYER + "output.dense.weight"
    assert reached(predicted(20, 4))[weight] == 15
    assert reached(predicted(20, 4, dropout=0.2))[weight] == 16


def test_xlms_hidden_state_and_length_bound_it_alike():
    for length, rows in ((6, 1), (20, 4)):
        config = XLM(layers=1, hidden=16, heads=2, sequence_length=length, alpha=1.0)
        signature = Signature("pairs", (length,), 60, each_step=True, vocabulary=60, languages=2)
        found = reached(ranks(config, signature, rows, TokenPrediction()))
        assert found["transformer.attentions.0.out_lin.weight"] == min(15, length * rows)
        assert found["transformer.position_embeddings.weight"] == min(15, length * rows)
        assert found["transformer.lang_embeddings.weight"] == 2

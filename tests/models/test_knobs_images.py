"""What the knobs of convolutional networks do to bounds, and to gradients' ranks."""

import pytest
from knobs import Ranks, ranks, reached

from models import VGG11, Classification, ResNet16, Signature

LINEAR = {"width": 8, "alpha": 1.0, "norm": False}
"""No norm, no bend: bounds are those of a linear network."""

LAST = ("13.weight", "16.weight", "18.weight")
"""Convolutions of VGG-11 that see one position of an image of 8 × 8."""


def classified(config: VGG11 | ResNet16, size: int, rows: int, classes: int = 10) -> dict[str, Ranks]:
    return ranks(config, Signature("images", (3, size, size), classes), rows, Classification())


@pytest.mark.parametrize(("size", "stride", "positions"), [(8, 1, 2 * 2), (16, 1, 4 * 4), (16, 2, 2 * 2)])
def test_one_image_has_as_many_rows_as_positions(size, stride, positions):
    """Before the third convolution two pools, and the stride, have halved the image."""
    found = classified(VGG11(pool="average", stride=stride, **LINEAR), size, 1)
    assert found["6.weight"] == Ranks(positions, positions, positions)
    assert reached(found)["23.weight"] == 1


@pytest.mark.parametrize("pool", ["average", "max"])
def test_the_heads_bottleneck_bounds_the_layers_before_it(pool):
    """Largest values too, since the last pool of so small an image meets one position alone."""
    found = reached(classified(VGG11(pool=pool, bottleneck=2, **LINEAR), 8, 6))
    assert {name: found[name] for name in LAST} == dict.fromkeys(LAST, 2)
    assert found["23.weight"] == found["24.weight"] == 2


def test_largest_values_of_several_positions_widen_adjoints():
    average, largest = (
        classified(VGG11(pool=pool, bottleneck=2, **LINEAR), 32, 6)["18.weight"] for pool in ("average", "max")
    )
    assert average.bound == average.measured == 2
    assert largest.bound == 6 * 2 * 2  # one row for each position of each image
    assert largest.measured > 2


def test_the_heads_bottleneck_bounds_the_last_blocks_of_a_residual_network():
    narrow, wide = (reached(classified(ResNet16(bottleneck=b, **LINEAR), 8, 6)) for b in (2, None))
    last = [name for name in narrow if name.startswith("8.")]
    assert len(last) == 3
    assert {name: narrow[name] for name in last} == dict.fromkeys(last, 2)
    assert {name: wide[name] for name in last} == dict.fromkeys(last, 6)


def test_classes_bound_by_one_less():
    found = classified(VGG11(pool="average", **LINEAR), 8, 6, classes=4)
    assert {name: reached(found)[name] for name in (*LAST, "23.weight")} == dict.fromkeys((*LAST, "23.weight"), 3)


def test_a_norm_leaves_one_row_less_than_samples():
    """Its adjoints sum to zero over the rows, and hold the normalised inputs too, so no bottleneck is left."""
    found = classified(VGG11(width=8, alpha=1.0, pool="average", bottleneck=2), 8, 6)
    one_position = [name for name, r in found.items() if name.endswith("weight") and r.bound == 5]
    assert len(one_position) == 4
    assert {reached(found)[name] for name in one_position} == {5}


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_slope_below_one_is_bounded_by_rows_and_tells_the_linear_rank(alpha):
    found = classified(VGG11(pool="average", bottleneck=2, **(LINEAR | {"alpha": alpha})), 8, 6)
    assert {name: (found[name].bound, found[name].linear) for name in LAST} == dict.fromkeys(LAST, (6, 2))
    assert all(found[name].measured > 2 for name in LAST)

"""The contract of every compressor: the mean over workers, the same on all of them, whatever the buckets.

To hold a compressor to it, add a line to `tests/support/cases.py`.
"""

from functools import cache

import pytest
from cases import CASES, cases
from delivery import EVENTS, STEADY, Setting, equal, measure

SETTINGS = {
    "one bucket": Setting(),
    "many buckets": Setting(bucket_mb=1e-3),
    "launched early": Setting(bucket_mb=1e-3, eager=True),
    "accumulated": Setting(bucket_mb=1e-3, accumulate=3, events=EVENTS[:6]),
}


@pytest.fixture(scope="module")
def runs(workers):
    """`runs(case, world_size)`: measured once."""
    return cache(lambda case, world_size: measure(workers, case, world_size, SETTINGS))


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=[1, 2, 3, 4])
def run(request, runs, case):
    """By setting: the deliveries of all workers."""
    return runs(case, request.param)


def test_the_methods_meant_are_tested(run, case):
    for deliveries in run.values():
        for delivery in deliveries:
            assert delivery.methods >= set(case.methods)
            assert delivery.sent == delivery.planned
            assert all(delivery.finite)
    assert run["many buckets"][0].buckets >= 4


def test_the_true_mean_is_delivered_at_once_or_in_the_end(run, case):
    """Also after a zero gradient, a fall of rank, inputs that share no rows, and with an empty batch."""
    for name, deliveries in run.items():
        for delivery in deliveries:
            assert delivery.lossless == case.lossless
            assert bool(delivery.residuals) == case.keeps
            if case.loss is not None:
                assert max(delivery.errors) <= case.loss, name
            if case.keeps:
                assert delivery.owed < 1e-12, name
            else:
                zero = delivery.delivered[EVENTS.index("zero")]
                assert all(float(gradient.abs().max()) == 0 for gradient in zero.values()), name
    if case.keeps:
        assert max(run["accumulated"][0].errors) > 1e-3, "nothing was lost, so nothing was tested"


def test_workers_receive_the_same_bit_for_bit(run):
    for name, deliveries in run.items():
        for other in deliveries[1:]:
            assert all(map(equal, deliveries[0].delivered, other.delivered)), name


def test_buckets_make_no_difference(run, case):
    """With more than two workers the order in which gloo adds depends on where a number lies."""
    alone, steps = run["one bucket"], slice(len(STEADY) if case.keeps else None)
    for name in ("many buckets", "launched early"):
        for one, many in zip(alone, run[name], strict=True):
            for first, second in zip(one.delivered[steps], many.delivered[steps], strict=True):
                if len(alone) <= 2:
                    assert equal(first, second), name
                else:
                    scale = max(float(gradient.abs().max()) for gradient in first.values())
                    for key in first:
                        # Sums in a coarse type differ by as much as it rounds.
                        limit = scale * max(1e-6, case.loss or 0.0)
                        assert (first[key] - second[key]).abs().max() <= limit, (name, key)


def test_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)
    assert cases(lossless=True)
    assert cases(keeps=True)

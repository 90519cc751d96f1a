"""What policies make of singular values: tails, what piles up, and a budget shared by it."""

import itertools
import math
import statistics

import pytest
from audits import audit
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress.policies.sharing import Option, share
from compress.policies.spectra import above_noise, steady_lags, steady_rank
from compress.tails import rank_within, tails


def waits(spectrum, rank, steps=3000):
    """What waits in each direction, in the later half of the steps, if each step sends the `rank` largest."""
    waiting, later = [0.0] * len(spectrum), []
    for step in range(steps):
        waiting = [old + new for old, new in zip(waiting, spectrum, strict=True)]
        for index in sorted(range(len(spectrum)), key=lambda index: -waiting[index])[:rank]:
            waiting[index] = 0.0
        if step >= steps // 2:
            later.append(waiting)
    return later


def piled_up(spectrum, rank):
    """The norm at which the residual comes to rest."""
    return math.sqrt(statistics.fmean(sum(held**2 for held in waiting) for waiting in waits(spectrum, rank)))


def lagging(spectrum, rank):
    """Σ over directions of σ times what waits of it, on average."""
    return statistics.fmean(
        sum(own * held for own, held in zip(spectrum, waiting, strict=True)) for waiting in waits(spectrum, rank)
    )


class TestSpectra:
    @pytest.mark.parametrize("decay", [0.95, 0.8, 0.5])
    @pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
    def test_the_steady_rank_is_that_of_what_piles_up(self, decay, share):
        spectrum = [decay**index for index in range(24)]
        most = share * math.hypot(*spectrum)
        rank = steady_rank(spectrum, most)
        assert piled_up(spectrum, rank) <= 1.2 * most
        if rank > 2:  # within two of the least
            assert piled_up(spectrum, rank - 2) > 0.9 * most

    @pytest.mark.parametrize("rank", [2, 3, 4, 6])
    def test_equal_directions_wait_for_their_turn(self, rank):
        wait = 12 // rank  # steps between two turns of one: 0, 1, …, wait − 1 of its gradients are kept
        most = math.sqrt(rank * sum(kept**2 for kept in range(wait)))
        assert steady_rank([1.0] * 12, most * 1.0001) == rank
        assert steady_rank([1.0] * 12, most * 0.9999) == rank + 1
        assert piled_up([1.0] * 12, rank) == pytest.approx(most)

    @given(st.lists(st.just(0.0) | st.floats(1e-9, 1e3), max_size=20), st.floats(0, 1e4))
    def test_more_error_never_asks_for_more(self, values, most):
        spectrum = sorted(values, reverse=True)
        positive = sum(value > 0 for value in spectrum)
        assert 1 <= steady_rank(spectrum, most) <= max(1, positive)
        assert steady_rank(spectrum, 2 * most) <= steady_rank(spectrum, most)

    def test_nothing_may_pile_up(self):
        assert steady_rank([3.0, 2.0, 1.0], 0.0) == 3
        assert steady_rank([], 0.0) == 1

    @pytest.mark.parametrize("decay", [0.95, 0.8])
    @pytest.mark.parametrize("rank", [1, 2, 4, 8, 16])
    def test_the_steady_lag_is_that_of_what_piles_up(self, decay, rank):
        spectrum = [decay**index for index in range(24)]
        assert steady_lags(spectrum)[rank] == pytest.approx(lagging(spectrum, rank), rel=0.3)

    @pytest.mark.parametrize("rank", [1, 2, 3, 4, 6, 12])
    def test_of_equal_directions_half_a_turn_lags(self, rank):
        assert steady_lags([2.0] * 12)[rank] == pytest.approx(lagging([2.0] * 12, rank))

    @given(st.lists(st.just(0.0) | st.floats(1e-3, 1e3), max_size=20))
    def test_the_more_columns_the_less_lags_and_the_less_one_more_gains(self, values):
        spectrum = sorted(values, reverse=True)
        positive = sum(value > 0 for value in spectrum)
        lags = steady_lags(spectrum)
        assert len(lags) == len(spectrum) + 1
        assert lags[positive:] == [0.0] * (len(spectrum) + 1 - positive)
        assert lags[0] == (math.inf if positive else 0.0)
        gains = [more - less for more, less in itertools.pairwise(lags[1:])]
        assert all(first >= second * (1 - 1e-9) - 1e-9 * lags[1] for first, second in itertools.pairwise([*gains, 0.0]))

    def test_one_step(self):
        assert tails([3.0, 2.0], math.sqrt(14)) == pytest.approx([14, 5, 1])
        assert [rank_within([3.0, 2.0, 1.0], part) for part in (0.0, 0.3, 0.6, 1.0)] == [3, 2, 1, 0]

    def test_what_was_not_found_is_spread_evenly(self):
        assert above_noise(audit([2.0, 1.0], norm=math.sqrt(5.5)), 4) == pytest.approx([2, 1, 0.5, 0.5])
        assert above_noise(audit([2.0, 1.0, 1e-9], norm=math.sqrt(5.5)), 4) == [2, 1]
        assert above_noise(audit([2.0, 1.0]), 1) == [2]


def options():
    """A matrix's options: bytes rise with the rank, by steps of any size, zero among them; the error falls."""
    pairs = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 10)), min_size=1, max_size=5)

    def build(steps):
        costs = list(itertools.accumulate((cost for cost, _ in steps), initial=1))[1:]
        lost = list(itertools.accumulate(gain for _, gain in reversed(steps)))[::-1]
        return [Option(rank, cost, left) for rank, (cost, left) in enumerate(zip(costs, lost, strict=True), start=1)]

    return pairs.map(build)


class TestSharing:
    @settings(max_examples=300)
    @given(st.lists(options(), min_size=1, max_size=4), st.integers(0, 60))
    def test_within_the_budget_and_the_proven_gap_of_the_best(self, matrices, spare):
        budget = sum(min(option.bytes for option in given) for given in matrices) + spare
        shared = share(matrices, budget)
        assert all(option in given for option, given in zip(shared.chosen, matrices, strict=True))
        assert sum(option.bytes for option in shared.chosen) <= budget
        affordable = [
            sum(option.lost for option in choice)
            for choice in itertools.product(*matrices)
            if sum(option.bytes for option in choice) <= budget
        ]
        left = sum(option.lost for option in shared.chosen)
        assert min(affordable) <= left + 1e-9
        assert left <= min(affordable) + shared.gap + 1e-9

    @settings(max_examples=100)
    @given(
        st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), min_size=1, max_size=4),
        st.integers(0, 20),
    )
    @example([[1.0, 2.0, 2.0], [2.0, 2.0, 2.0]], 2)  # roundoff: 2² + 2² are a little more than twice 2²
    def test_columns_of_one_price_are_shared_exactly(self, spectra, columns):
        matrices = []
        for values in spectra:
            left = tails(sorted(values, reverse=True), math.hypot(*values))
            matrices.append([Option(rank, rank, left[rank]) for rank in range(1, len(left))])
        budget = len(matrices) + columns
        shared = share(matrices, budget)
        best = min(
            sum(option.lost for option in choice)
            for choice in itertools.product(*matrices)
            if sum(option.bytes for option in choice) <= budget
        )
        assert sum(option.lost for option in shared.chosen) == pytest.approx(best, abs=1e-9)

    def test_roundoff_joins_no_steps(self):
        a = [Option(1, 1, 5.0), Option(2, 2, 1.0), Option(3, 3, 0.0)]
        b = [Option(1, 1, 8.0), Option(2, 2, 4 + 4e-15), Option(3, 3, 0.0)]  # the second column gains a little more
        assert [option.rank for option in share([a, b], 4).chosen] == [2, 2]

    def test_too_little(self):
        with pytest.raises(ValueError, match="the least is 7"):
            share([[Option(1, 3, 1.0)], [Option(1, 4, 1.0)]], 6)

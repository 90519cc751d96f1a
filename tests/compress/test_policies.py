"""Policies as the pure functions that they are, without workers."""

import math

import pytest
import torch
from audits import audit
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import bounds_of, deep
from simulated import Simulation, in_lockstep, train_digits

import compress
from compress.bounds import Bounds, RankBound
from compress.compressors.base import Matrix, Sizing
from compress.layers import ParameterInfo, describe

SIDE = 32


def matrix(name="a", m=SIDE, n=SIDE, dtype=torch.float32):
    return ParameterInfo(name, (m, n), dtype)


def bounds(**ranks):
    entries = {name: RankBound(rank, (SIDE, SIDE), "narrow", max(1, rank - 2)) for name, rank in ranks.items()}
    return Bounds(entries, (), 2, 1, True)


def decide(policy, seen=(), now=None, bound=8, **situation):
    """The rank of one matrix."""
    given = compress.Situation(
        [matrix()],
        bounds(a=bound) if bound else None,
        {"a": seen} if seen else {},
        {} if now is None else {"a": now},
        **situation,
    )
    decisions = compress.make_policy(policy).decide(given)
    assert decisions == compress.make_policy(policy).decide(given)
    return decisions["a"].rank


FLAT = [1.0] * 8 + [0.0] * 24
ONE = [1.0] + [0.0] * 31


class TestBound:
    @pytest.mark.parametrize(
        ("settings", "rank"),
        [
            ({}, 8),
            ({"offset": 3}, 11),
            ({"offset": -9}, 1),
            ({"linear": True}, 6),
            ({"fraction": 0.5}, 4),
            ({"fraction": 0.51}, 5),
            ({"fraction": 0.01}, 1),
            ({"cap": 3}, 3),
            ({"cap": 30}, 8),
            ({"fraction": 0.5, "offset": 2, "cap": 4}, 4),
        ],
    )
    def test_rank(self, settings, rank):
        assert decide({"kind": "bound", **settings}) == rank

    def test_a_fraction_is_not_rounded_up_by_roundoff(self):
        assert 0.28 * 25 > 7
        assert decide({"kind": "bound", "fraction": 0.28}, bound=25) == 7


class TestAudited:
    policy = {"kind": "audited", "slack": 1, "patience": 3}  # noqa: RUF012

    def follow(self, measured, now=8, **situation):
        ranks, seen = [], []
        for step, rank in enumerate(measured):
            seen.append(audit([1.0] * rank + [0.0] * (SIDE - rank), step))
            now = decide(self.policy, seen, now, **situation)
            ranks.append(now)
        return ranks

    def test_begins_at_the_bound_or_without_bounds_at_all_there_is(self):
        assert decide(self.policy) == 8
        assert decide(self.policy, bound=None) == SIDE

    def test_rises_at_once_and_falls_after_patience(self):
        assert self.follow([2, 3, 2, 2, 2, 5, 2, 2, 2]) == [8, 8, 4, 4, 3, 6, 6, 6, 3]

    def test_one_audit_that_is_not_lower_stops_the_fall(self):
        assert self.follow([2, 2, 7, 2, 2, 2]) == [8, 8, 8, 8, 8, 3]

    def test_slack_ends_at_the_bound_and_what_is_measured_does_not(self):
        assert self.follow([8, 12]) == [8, 12]

    def test_a_zero_gradient_gets_rank_one(self):
        assert self.follow([0, 0, 0]) == [8, 8, 1]


class TestTolerance:
    policy = {"kind": "tolerance", "tolerance": 0.1}  # noqa: RUF012

    def test_begins_at_the_bound(self):
        assert decide(self.policy) == 8
        assert decide(self.policy, bound=None) == SIDE

    def test_nothing_is_certain_but_the_bound(self):
        assert decide({"kind": "tolerance", "tolerance": 0}, [audit(ONE)], 8) == 8

    def test_falls_by_a_quarter_and_rises_at_once(self):
        assert [decide(self.policy, [audit(ONE)], now) for now in (8, 6, 4, 3, 2, 1)] == [6, 4, 3, 2, 1, 1]
        assert decide(self.policy, [audit(ONE, 0), audit(FLAT, 1)], 1) == 8

    def test_the_largest_demand_of_the_window_counts(self):
        seen = [audit(FLAT, 0), *(audit(ONE, step) for step in range(1, 5))]
        assert decide(self.policy, seen[:4], 8) == 8
        assert decide(self.policy, seen, 8) == 6

    def test_a_large_error_raises_the_rank_and_stops_falls(self):
        halfway = 0.1 * math.sqrt(0.5)
        assert decide(self.policy, [audit(ONE, error=halfway * 1.01)], 3) == 4
        assert decide(self.policy, [audit(ONE, error=halfway * 0.99)], 3) == 2
        assert decide(self.policy, [audit(ONE, error=0.2, inputs=FLAT)], 3) == 8
        seen = [audit(ONE, 0, error=0.2), *(audit(ONE, step) for step in range(1, 20))]
        assert decide(self.policy, seen, 4) == 4
        assert decide(self.policy, [*seen, audit(ONE, 20)], 4) == 3

    def test_the_bound_is_enough_but_not_in_coarse_types(self):
        full = audit([1.0] * SIDE)
        assert decide(self.policy, [full], 8) == 8
        situation = compress.Situation([matrix(dtype=torch.bfloat16)], bounds(a=8), {"a": [full]}, {"a": 8})
        assert compress.make_policy(self.policy).decide(situation)["a"].rank == SIDE


class TestBudget:
    def situation(self, seen=None, ranks=None):
        matrices = [matrix("a"), matrix("b", 8, 64)]
        return compress.Situation(matrices, bounds(a=6, b=6), seen or {}, ranks or {})

    def test_begins_evenly(self):
        column = 4 * 64 + 4 * 72
        policy = compress.BudgetPolicy(bytes=3 * column + 4 * 64)  # one column more for the first alone
        assert {n: d.rank for n, d in policy.decide(self.situation()).items()} == {"a": 4, "b": 3}
        policy = compress.BudgetPolicy(bytes=100 * column)
        assert {n: d.rank for n, d in policy.decide(self.situation()).items()} == {"a": 6, "b": 6}

    def decided(self, seen, **settings):
        policy = compress.BudgetPolicy(as_rank=3, **settings)
        return {name: decision.rank for name, decision in policy.decide(self.situation(seen)).items()}

    @pytest.mark.parametrize("minimise", ["lag", "error"])
    def test_goes_where_most_is_lost(self, minimise):
        seen = {"a": [audit([3.0, 0.01, 0.01, 0.0])], "b": [audit([1.0, 0.9, 0.8, 0.7, 0.0])]}
        assert self.decided(seen, minimise=minimise) == {"a": 1, "b": 4}

    def test_many_small_directions_lag_more_than_they_err(self):
        """At three columns each: `a` leaves 3 · 0.5² and `b` 0.9², but of `a` six share what is left of the columns."""
        seen = {"a": [audit([5.0, *[0.5] * 5])], "b": [audit([5.0, 1.0, 1.0, 0.9, 0.0])]}
        assert self.decided(seen, minimise="error") == {"a": 1, "b": 4}
        assert self.decided(seen, minimise="lag") == {"a": 3, "b": 3}

    @pytest.mark.parametrize("minimise", ["lag", "error"])
    def test_adam_steps_as_far_where_gradients_are_small(self, minimise):
        seen = {"a": [audit([9.0, 0.9, 0.9, 0.9])], "b": [audit([0.4] * 6)]}
        assert self.decided(seen, minimise=minimise) == {"a": 4, "b": 2}
        assert self.decided(seen, minimise=minimise, optimizer="adam")["b"] > 2

    def test_audits_of_the_window_count_alike(self):
        flat, steep = [audit([1.0, 0.9, 0.8, 0.7, 0.0])], [audit([3.0, 0.01, 0.01, 0.0])]
        turned = {"a": 3 * flat + steep, "b": 3 * steep + flat}
        assert self.decided(turned, window=4) == {"a": 4, "b": 2}
        assert self.decided(turned, window=1) == {"a": 1, "b": 4}

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_the_plan_never_exceeds_the_budget(self, data):
        bottleneck = data.draw(st.integers(1, 8))
        model = deep(bottleneck=bottleneck)
        infos = [info for info in describe(model) if info.is_matrix]
        known = data.draw(st.sampled_from([BOUNDS[bottleneck], None]))
        start = compress.make_plan(model, "powersgd", {"kind": "budget", "as_rank": 1}, bounds=known, world_size=2)
        spent = sum(assignment.bytes for assignment in start.matrices)
        budget = data.draw(st.integers(spent, start.dense.bytes + 10))
        plan = compress.make_plan(model, "powersgd", {"kind": "budget", "bytes": budget}, bounds=known, world_size=2)
        for step in range(2):
            assert sum(assignment.bytes for assignment in plan.matrices) <= budget
            assert all(1 <= rank <= 24 for rank in plan.decided.values())
            spectra = {
                info.name: sorted(
                    data.draw(st.lists(st.floats(0, 5), min_size=(k := min(info.matrix)), max_size=k)), reverse=True
                )
                for info in infos
            }
            seen = {name: [audit(spectrum, step)] for name, spectrum in spectra.items()}
            plan = plan.planner.plan(seen, plan.decided)
        assert sum(assignment.bytes for assignment in plan.matrices) <= budget

    def test_as_rank_is_what_fixed_takes(self):
        for rank in (1, 3, 20):
            plan = compress.make_plan(deep(), "powersgd", {"kind": "budget", "as_rank": rank}, world_size=2)
            fixed = compress.make_plan(deep(), "powersgd", {"kind": "fixed", "rank": rank}, world_size=2)
            assert plan.bytes == fixed.bytes


BOUNDS = {bottleneck: bounds_of(deep(bottleneck=bottleneck), 2) for bottleneck in range(1, 9)}


class TestOracle:
    def test_each_step_takes_the_least_rank_and_keeps_the_rest(self):
        torch.manual_seed(0)
        info = matrix(dtype=torch.float64)
        U, V = (torch.linalg.qr(torch.randn(SIDE, SIDE, dtype=torch.float64)).Q for _ in range(2))
        G = U @ torch.diag(0.5 ** torch.arange(SIDE, dtype=torch.float64)) @ V
        fit = compress.SVD().fit(Sizing(info, None, 8, None, tolerance=0.1))
        assert not fit.lossless
        memory = {}
        for expected in (4, 5):  # 0.5 ** 4 < 0.1 of the norm is left; then twice of it
            held = Matrix(info, {"a": G.clone()}, fit, 0, 0, memory, certified=False)
            delivered = in_lockstep([compress.SVD().rounds(held)])["a"]
            assert int(memory["rank"]) == torch.linalg.matrix_rank(delivered) == expected

    def test_goes_with_svd_alone(self):
        plan = compress.make_plan(deep(), "svd", "oracle", world_size=2)
        assert {assignment.method for assignment in plan.values()} == {"svd"}
        mixed = compress.make_plan(deep(), ["powersgd", "svd"], "oracle", world_size=2)
        assert {assignment.method for assignment in mixed.values()} == {"svd"}
        for other in ("powersgd", "rank_dad", "dense", ["powersgd", "dad"]):
            with pytest.raises(ValueError, match="none takes; take compressor 'svd'"):
                compress.make_plan(deep(), other, "oracle", world_size=2)

    def test_errors_stay_within_the_tolerance(self):
        simulation = Simulation(compress.make_plan(deep(), "svd", "oracle", world_size=2), every=10)
        torch.manual_seed(0)
        for _ in range(30):
            simulation.exchange(
                [{name: torch.randn(a.info.shape, dtype=a.info.dtype) for name, a in simulation.plan.items()}] * 2
            )
        assert all(max(errors) <= 0.05 for errors in simulation.errors.values())
        assert any(max(errors) > 0.01 for errors in simulation.errors.values())


@pytest.mark.parametrize(("alpha", "batch_size"), [(1.0, 128), (0.1, 128), (0.5, None)])
def test_errors_stay_within_the_tolerance_between_audits(alpha, batch_size):
    simulation, loss = train_digits("tolerance", alpha, batch_size, steps=200, every=20)
    assert loss < 0.2
    for name in simulation.errors:
        errors = simulation.between_audits(name)
        assert sum(error <= 0.05 for error in errors) >= 0.95 * len(errors)
    assert simulation.bytes[-1] < simulation.bytes[0] or batch_size is None  # all data at once need the bound


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"kind": "tolerance", "tolerance": -0.1}, "tolerance: .*greater than or equal to 0"),
        ({"kind": "tolerance", "tolerance": 1}, "tolerance: .*less than 1"),
        ({"kind": "tolerance", "margin": 0}, "margin: .*greater than 0"),
        ({"kind": "tolerance", "patience": 0}, "patience: .*greater than or equal to 1"),
        ({"kind": "tolerance", "window": 0}, "window: .*greater than or equal to 1"),
        ({"kind": "oracle", "tolerance": 1.5}, "tolerance: .*less than 1"),
        ({"kind": "audited", "patience": 0}, "patience: .*greater than or equal to 1"),
        ({"kind": "audited", "slack": -1}, "slack: .*greater than or equal to 0"),
        ({"kind": "bound", "cap": 0}, "cap: .*greater than or equal to 1"),
        ({"kind": "bound", "fraction": 0}, "fraction: .*greater than 0"),
        ({"kind": "bound", "fraction": 1.1}, "fraction: .*less than or equal to 1"),
        ({"kind": "budget"}, "'budget': give either bytes or as_rank"),
        ({"kind": "budget", "bytes": 10, "as_rank": 2}, "give either bytes or as_rank"),
        ({"kind": "budget", "as_rank": 0}, "as_rank: .*greater than or equal to 1"),
        ({"kind": "budgets"}, "did you mean 'budget'"),
    ],
)
def test_bad_settings_are_told(policy, told):
    with pytest.raises(ValueError, match=told):
        compress.make_policy(policy)


def test_a_budget_below_one_column_names_the_least():
    with pytest.raises(ValueError, match="has 50 bytes, and rank 1 for each of 4 matrices takes 1216; give 1216"):
        compress.make_plan(deep(), "powersgd", {"kind": "budget", "bytes": 50}, world_size=2)
    compress.make_plan(deep(), "powersgd", {"kind": "budget", "bytes": 1216}, world_size=2)


def test_bound_alone_needs_bounds():
    for kind in ("audited", "tolerance", {"kind": "budget", "as_rank": 2}):
        compress.make_plan(deep(), "powersgd", kind, world_size=2)
    with pytest.raises(ValueError, match="policy 'bound' needs bounds"):
        compress.make_plan(deep(), "powersgd", "bound", world_size=2)

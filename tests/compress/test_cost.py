"""The cost model: what is foretold of bytes, collectives and seconds, and where one plan overtakes another."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, cases
from contract_nets import Batches, bounds
from delivery import Setting, wrap
from torch import nn

import compress
from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Work
from compress.cost import (
    Network,
    Rates,
    break_even_bandwidth,
    break_even_workers,
    measure_rates,
    predict,
)

SLOW = Network(bandwidth="10mbit", latency="100us")
FAST = Network(bandwidth="1000gbit", latency="1us")
FREE = Rates(
    memory=math.inf,
    products=math.inf,
    torch_products=math.inf,
    orthonormalise=math.inf,
    svd=math.inf,
    call=0,
    matrix=0,
    collective=0,
)

# --- what is counted ------------------------------------------------------------------------------------------------

STEPS = 4
SETTINGS = {
    "one bucket": Setting(),
    "many buckets": Setting(bucket_mb=1e-3),
    "hurried": Setting(bucket_mb=1e-3, eager=True),
}
COUNTED = [
    *CASES,
    Case(
        "torch_powersgd",
        {"compressor": "torch_powersgd", "policy": {"kind": "fixed", "rank": 2}},
        ("torch_powersgd",),
        bounds=False,
    ),
]


def counted(rank, case, world_size, settings):
    """For each setting: what the last of a few steps handed over, and what was foretold of it."""
    return {name: _counted(rank, case, world_size, setting) for name, setting in settings.items()}


def _counted(rank, case, world_size, setting):
    hurry = {"compress.state.LAUNCH_BYTES": 512, "compress.exchange.IN_PLACE_BYTES": 256}
    hurry |= {"compress.cost.flights.LAUNCH_BYTES": 512, "compress.cost.flights.IN_PLACE_BYTES": 256}
    patches = [patch(name, value) for name, value in hurry.items()] if setting.eager else []
    for one in patches:
        one.start()
    try:
        batches = Batches(case.network, world_size, setting.dtype)
        ddp, state = wrap(case, batches, setting)
        launched = []
        count = state.exchange.count
        state.exchange.count = lambda collective, size: (launched.append(size), count(collective, size))
        for step in range(STEPS):  # DDP lays its buckets out anew after the first, PyTorch's hook begins with the third
            launched.clear()
            before = state.exchange.bytes, state.exchange.wire_bytes, getattr(state.exchange, "inside_bytes", 0)
            ddp.zero_grad()
            batches.loss(ddp, rank, step).backward()
        exchange = state.exchange
        found = exchange.bytes - before[0], exchange.wire_bytes - before[1]
        inside = getattr(exchange, "inside_bytes", 0) - before[2]
        return found, inside, len(launched), predict(state.plan, SLOW, bucket_mb=setting.bucket_mb), state.plan
    finally:
        for one in patches:
            one.stop()


def planned_for(case, world_size, **changes):
    """The settings, with bounds that are traced once."""
    traced = bounds(case.network, world_size)
    return {name: replace(setting, bounds=traced, **changes) for name, setting in SETTINGS.items()}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_bytes_and_collectives_are_those_that_are_counted(workers, case, world_size):
    for worker in workers(world_size)(counted, case, world_size, planned_for(case, world_size)):
        for name, ((handed, wire), _, launched, cost, plan) in worker.items():
            assert cost.bytes == handed == plan.bytes, name
            # Thirds are rounded, here and there in another order.
            assert cost.wire_bytes == (pytest.approx(wire, rel=1e-12) if world_size == 3 else wire), name
            assert cost.bytes == sum(parameter.bytes for parameter in cost.parameters.values())
            assert cost.inside_bytes == 0
            if not plan.whole_buckets:  # PyTorch's hook gives one account for a bucket's three
                # Where buckets end depends on which gradients are ready first.
                assert abs(cost.collectives - launched) <= (name == "hurried"), name


@pytest.mark.parametrize("case", cases(two_level=True), ids=str)
def test_bytes_between_and_inside_nodes_are_those_that_are_counted(workers, case):
    for rank, worker in enumerate(workers(4)(counted, case, 4, planned_for(case, 4, nodes=2))):
        for name, (found, inside, _, cost, _) in worker.items():
            assert found == ((cost.bytes, cost.wire_bytes) if rank % 2 == 0 else (0, 0)), name
            assert cost.inside_bytes == inside, name


# --- seconds --------------------------------------------------------------------------------------------------------


def linear(*widths: int, workers: int = 2, rows: int = 8, nodes: int = 1, compressor="dense", policy="none", **kwargs):
    """A plan for linear layers in a row."""
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    x, y = torch.zeros(rows, widths[0]), torch.zeros(rows, widths[-1])
    bound = compress.rank_bounds(model, (x,), loss=F.mse_loss, targets=(y,), world_size=workers)
    return compress.make_plan(model, compressor, policy, bounds=bound, world_size=workers, local_size=nodes, **kwargs)


def test_seconds_are_those_of_the_ring():
    network = Network(bandwidth="8mbit", latency="1ms")  # a megabyte per second
    dense = predict(linear(300, 200, workers=4), network, FREE)
    assert dense.seconds == pytest.approx(1.5 * 4 * (300 * 200 + 200) / 1e6 + 6e-3, rel=1e-12)
    gathered = predict(linear(300, 200, workers=4, compressor="dad"), network, FREE)
    assert gathered.bytes == 4 * 8 * 500 + 16
    assert gathered.seconds == pytest.approx(3 * gathered.bytes / 1e6 + 3e-3, rel=1e-12)


def test_latency_is_paid_for_each_collective_and_not_for_each_matrix():
    network = Network(bandwidth="1gbit", latency="1ms")
    plan = linear(64, 64, 4, 64, 64, compressor="powersgd", policy="bound")
    assert sum(assignment.method == "powersgd" for assignment in plan.values()) == 2
    cost = predict(plan, network, FREE)
    assert cost.collectives == 2
    assert cost.communication == pytest.approx(8 * plan.wire_bytes / 1e9 + 4e-3)


def test_two_levels_average_inside_and_hand_on_the_answers():
    network = Network(bandwidth="8mbit", latency="1ms", local_bandwidth="80mbit", local_latency="0.1ms")
    plan = linear(300, 200, workers=4, nodes=2)
    size = 4 * (300 * 200 + 200)
    between, inside, handed_on = size / 1e6 + 2e-3, size / 1e7 + 2e-4, size / 1e7 + 1e-4
    cost = predict(plan, network, FREE)
    assert (cost.wire_bytes, cost.inside_bytes) == (size, 2 * size)
    assert cost.seconds == pytest.approx(between + inside + handed_on, rel=1e-12)


def test_arithmetic_is_counted_by_the_rates():
    plan = linear(256, 256, 4, 256, compressor="powersgd", policy="bound")
    free = predict(plan, SLOW, FREE)
    assert free.compute == 0
    one = predict(plan, SLOW, replace(FREE, products=1.0)).compute
    compressed = [assignment for assignment in plan.matrices if assignment.method == "powersgd"]
    assert one == sum(6 * 256 * math.prod(a.info.shape) / 256 * a.fit.columns for a in compressed)
    assert predict(plan, SLOW, replace(FREE, memory=1.0)).compute > 3 * plan.dense.bytes


@pytest.mark.parametrize("rows", [4, 32])
def test_a_captured_layer_spares_its_own_product(rows):
    spared, products = 2 * 256 * 256 * max(rows, 16), replace(FREE, products=1.0)  # of few rows it takes no less
    for workers in (2, 4):
        dad = linear(256, 256, workers=workers, rows=rows, compressor="dad")
        ranked = linear(
            256, 256, workers=workers, rows=rows, compressor="rank_dad", policy={"kind": "fixed", "rank": 32}
        )
        assert predict(dad, SLOW, products).compute == workers * 2 * 256 * 256 * rows
        assert predict(ranked, SLOW, products).compute == workers * 2 * 256 * 256 * 32
        for plan in (dad, ranked):
            assert predict(plan, SLOW, replace(FREE, torch_products=1.0)).compute == -spared


def test_methods_of_ones_own_take_two_passes_and_say_otherwise():
    class Halves(Compressor):
        kind: Literal["halves"] = "halves"
        flops: float | None = None

        def fit(self, sizing: Sizing) -> Fit:
            return Fit((Payload(AllReduceMean, math.prod(sizing.matrix.shape) // 2),), 1, lossless=False)

        def work(self, sizing: Sizing, fit: Fit) -> Work:
            return super().work(sizing, fit) if self.flops is None else Work(flops=self.flops)

        def rounds(self, matrix: Matrix) -> Rounds:
            raise NotImplementedError

    plain = linear(64, 64, compressor=Halves())
    assert plain["0.weight"].work.passes == 2
    assert linear(64, 64, compressor=Halves(flops=7.0))["0.weight"].work == Work(flops=7.0)
    assert predict(plain, SLOW).bytes == 4 * (64 * 32 + 64)


def test_rates_are_measured_and_plausible():
    rates = measure_rates()
    assert 1e8 < rates.memory < 1e12
    assert 1e9 < rates.products < 1e13
    assert all(0 < value < math.inf for key, value in vars(rates).items() if key not in ("matrix", "collective"))
    assert 1e-7 < rates.call < 1e-1


# --- where one overtakes another ------------------------------------------------------------------------------------


def test_at_the_bandwidth_of_both_a_step_takes_as_long():
    plan = linear(1024, 1024, 8, 1024, 1024, compressor="powersgd", policy="bound")
    bandwidth = break_even_bandwidth(plan, plan.dense, FAST)
    assert 1e6 < bandwidth < 1e12
    there = FAST.model_copy(update={"bandwidth": bandwidth})
    assert predict(plan, there).seconds == pytest.approx(predict(plan.dense, there).seconds, rel=1e-9)
    for factor, faster in ((0.9, True), (1.1, False)):
        there = FAST.model_copy(update={"bandwidth": factor * bandwidth})
        assert (predict(plan, there).seconds < predict(plan.dense, there).seconds) == faster


def test_a_plan_may_be_faster_at_every_bandwidth_or_at_none():
    plan = linear(256, 256, 8, 256, compressor="subspace")
    assert break_even_bandwidth(plan, plan.dense, FAST, FREE) == math.inf
    assert break_even_bandwidth(plan.dense, plan, FAST, FREE) == 0
    assert break_even_bandwidth(plan.dense, plan.dense, FAST) == 0


def test_from_so_many_workers_on_gathers_send_more():
    gathers = linear(256, 8, 256, rows=4, compressor="rank_dad", policy={"kind": "fixed", "rank": 2})
    reduces = linear(256, 8, 256, rows=4)

    def wire(plan):
        return plan.wire_bytes

    workers = break_even_workers(gathers, reduces, wire)
    at, before = (replace(gathers, world_size=s).wire_bytes for s in (workers, workers - 1))
    assert at > replace(reduces, world_size=workers).wire_bytes
    assert before <= replace(reduces, world_size=workers - 1).wire_bytes
    assert break_even_workers(reduces, reduces, wire) is None
    assert break_even_workers(gathers, gathers, lambda plan: float(plan is gathers)) is None

"""The cost model: units, what is foretold of bytes and collectives, and what `auto` chooses by it."""

import math
import pickle
from dataclasses import replace
from functools import cache
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
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Work
from compress.compressors.work import LIBRARY
from compress.cost import (
    Network,
    Rates,
    break_even_bandwidth,
    break_even_workers,
    measure_rates,
    parse_bandwidth,
    parse_seconds,
    predict,
)

SLOW = Network(bandwidth="10mbit", latency="100us")
FAST = Network(bandwidth="1000gbit", latency="1us")
FREE = Rates(memory=math.inf, products=math.inf, orthonormalise=math.inf, svd=math.inf, call=0, matrix=0, collective=0)

# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "bits"),
    [
        ("25gbit", 25e9),
        ("25 Gbit/s", 25e9),
        ("100mbit", 1e8),
        ("100Mbps", 1e8),
        ("1.5GB/s", 12e9),
        ("1.5gb/s", 1.5e9),
        ("2GiB/s", 2 * 8 * 2**30),
        ("8", 8),
        (1e9, 1e9),
        ("1e9", 1e9),
        ("56kbit", 56e3),
        ("0.4tbit", 4e11),
    ],
)
def test_bandwidths_are_read(given, bits):
    assert parse_bandwidth(given) == pytest.approx(bits, rel=1e-15)


@pytest.mark.parametrize(
    "given", ["", "fast", "25gbits per second", "-1gbit", "0", 0, True, "nan", "1e400", "20us", "g"]
)
def test_what_is_no_bandwidth_is_refused(given):
    with pytest.raises(ValueError, match=r"found .*allowed are bits per second, such as 25gbit"):
        parse_bandwidth(given)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("20us", 2e-5), ("20 µs", 2e-5), ("0.1ms", 1e-4), ("1s", 1), ("5ns", 5e-9), (0, 0), ("3e-6", 3e-6)],
)
def test_times_are_read(given, seconds):
    assert parse_seconds(given) == pytest.approx(seconds, rel=1e-15)


@pytest.mark.parametrize("given", ["", "-1us", "1m", "soon", False, "inf", "25gbit"])
def test_what_is_no_time_is_refused(given):
    with pytest.raises(ValueError, match=r"found .*allowed is a time, such as 20us"):
        parse_seconds(given)


def test_a_network_reads_units_and_refuses_what_it_does_not_know():
    network = Network(bandwidth="1GB/s", latency="1ms")
    assert (network.bandwidth, network.latency) == (8e9, 1e-3)
    with pytest.raises(ValueError, match="lateny"):
        Network(bandwidth="1GB/s", lateny="1ms")


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


def test_a_captured_layer_spares_its_own_product():
    products = replace(FREE, products=1.0)
    two, four = (predict(linear(256, 256, workers=s, compressor="dad"), SLOW, products).compute for s in (2, 4))
    assert four == 3 * two == 3 * LIBRARY * 2 * 256 * 256 * 8


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


# --- auto -----------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(24, 48, batch_first=True), nn.Linear(48, 24)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.narrow, self.head = nn.Linear(32, 4), nn.Linear(4, 24)

    def forward(self, tokens):
        return self.head(self.narrow(self.block(self.embed(tokens))))


def bottleneck():
    return nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 4), nn.Linear(4, 96), nn.Linear(96, 24)), torch.zeros(3, 48)


def leaky():
    layers = [nn.Linear(48, 96), nn.LeakyReLU(0.9), nn.Linear(96, 4), nn.LeakyReLU(0.9), nn.Linear(4, 24)]
    return nn.Sequential(*layers), torch.zeros(3, 48)


def wide_rows():
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 24)), torch.zeros(500, 48)


def convolutional():
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1), nn.Conv2d(2, 40, 3), nn.Flatten(), nn.Linear(160, 24)]
    return nn.Sequential(*layers), torch.zeros(2, 3, 6, 6)


NETWORKS = {
    "bottleneck": bottleneck,
    "leaky": leaky,
    "wide rows": wide_rows,
    "convolutional": convolutional,
    "recurrent": lambda: (Recurrent(), torch.zeros(2, 3, 24)),
    "transformer": lambda: (Transformer(), torch.zeros(2, 3, dtype=torch.long)),
}
SINGLE = ("dense", "powersgd", "subspace", "dad", "rank_dad")


@cache
def bounded(network, world_size):
    model, x = NETWORKS[network]()
    with torch.no_grad():
        target = torch.zeros_like(model(x))
    return model, compress.rank_bounds(model, (x,), loss=F.mse_loss, targets=(target,), world_size=world_size)


def plans(kind, world_size, policy="bound", nodes=1, **kwargs):
    """What auto plans, and what each method alone."""
    model, bound = bounded(kind, world_size)
    common = {"bounds": bound, "world_size": world_size, "local_size": nodes, **kwargs}
    single = [name for name in SINGLE if nodes == 1 or name not in ("dad", "rank_dad")]
    given = "none" if policy == "bound" else policy  # where there are bounds they are auto's ranks
    return (
        compress.make_plan(model, "auto", given, **common),
        {name: compress.make_plan(model, name, policy, **common) for name in single},
    )


@pytest.mark.parametrize("policy", ["bound", {"kind": "fixed", "rank": 1}, {"kind": "bound", "linear": True}], ids=str)
@pytest.mark.parametrize(("world_size", "nodes"), [(1, 1), (2, 1), (5, 1), (64, 1), (4, 2)])
@pytest.mark.parametrize("network", NETWORKS)
def test_auto_sends_no_more_than_any_method_alone(network, world_size, nodes, policy):
    auto, single = plans(network, world_size, policy, nodes)
    for name, plan in single.items():
        assert auto.wire_bytes <= plan.wire_bytes * (1 + 1e-12), name
    if policy == "bound":
        assert all(assignment.lossless for assignment in auto.values())


@pytest.mark.parametrize(
    "link", [SLOW, Network(bandwidth="1gbit", latency="20us"), FAST], ids=lambda n: f"{n.bandwidth:g}"
)
@pytest.mark.parametrize("network", NETWORKS)
def test_auto_takes_no_longer_than_any_method_alone(network, link):
    auto, single = plans(network, 4, network=link)
    for name, plan in single.items():
        assert predict(auto, link).seconds <= predict(plan, link).seconds * (1 + 1e-12), name
    assert all(assignment.lossless for assignment in auto.values())


def test_auto_mixes_methods_and_takes_dense_where_links_are_fast():
    methods = {assignment.method for network in NETWORKS for assignment in plans(network, 2)[0].matrices}
    assert methods >= {"dense", "subspace", "dad"}
    assert {a.method for a in plans("bottleneck", 4, network=FAST)[0].matrices} == {"dense"}
    assert "dense" not in {a.method for a in plans("bottleneck", 4, network=SLOW)[0].matrices[:1]}


def test_a_bias_that_comes_along_counts_for_its_layer():
    """Else powersgd would be taken where dad sends fewer bytes with the bias, and more without."""
    model = nn.Sequential(nn.Linear(40, 40))
    x = torch.zeros(8, 40)
    bound = compress.rank_bounds(model, (x,), loss=F.mse_loss, targets=(x,), world_size=2)
    policy = {"kind": "fixed", "rank": 8}
    alone = {name: compress.make_plan(model, name, policy, bounds=bound, world_size=2) for name in ("powersgd", "dad")}
    assert alone["dad"]["0.weight"].wire_bytes(2) > alone["powersgd"]["0.weight"].wire_bytes(2)
    assert alone["dad"].wire_bytes < alone["powersgd"].wire_bytes
    both = compress.make_plan(model, ["powersgd", "dad"], policy, bounds=bound, world_size=2)
    assert both["0.weight"].method == "dad"


def test_auto_never_loses_what_the_policy_does_not_give_up():
    model, bound = bounded("bottleneck", 2)
    coarse = compress.make_plan(model.to(torch.bfloat16), "auto", bounds=bound, world_size=2)
    model.to(torch.float32)
    assert {assignment.method for assignment in coarse.values()} == {"dense"}
    assert "not lossless here" in coarse["0.weight"].reason
    nothing_known = compress.make_plan(model, "auto", world_size=2)
    assert {assignment.method for assignment in nothing_known.values()} == {"dense"}
    below, _ = plans("bottleneck", 64, {"kind": "fixed", "rank": 1})
    assert below["0.weight"].method in ("powersgd", "subspace")
    assert any(assignment.method == "powersgd" and not assignment.lossless for assignment in below.values())


@pytest.mark.parametrize("given", [["auto", "dad"], {"kind": "auto", "rank": 3}])
def test_auto_has_no_settings_and_stands_alone(given):
    with pytest.raises(ValueError, match=r"give it alone|fields: kind"):
        compress.make_plan(nn.Linear(4, 4), given, world_size=2)


def trained_by_auto(rank, model, bound):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="auto", bounds=bound, network=SLOW)
    inputs = [torch.randn(3, 48, generator=torch.Generator().manual_seed(worker)) for worker in range(2)]
    F.mse_loss(ddp(inputs[rank]), torch.zeros(3, 24)).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    (sum(F.mse_loss(model(x), torch.zeros(3, 24)) for x in inputs) / 2).backward()
    error = max(float((a - p.grad).norm() / p.grad.norm()) for a, p in zip(found, model.parameters(), strict=True))
    return error, state.exchange.bytes, predict(state.plan, SLOW).bytes, {a.method for a in state.plan.values()}


def test_what_auto_plans_is_the_true_mean(workers):
    for error, sent, foretold, methods in workers(2)(trained_by_auto, *bounded("bottleneck", 2)):
        assert error < 1e-5
        assert sent == foretold
        assert len(methods) > 1


def test_plans_of_a_network_are_pickled():
    auto, _ = plans("bottleneck", 4, network=SLOW)
    again = pickle.loads(pickle.dumps(auto))
    assert predict(again, SLOW) == predict(auto, SLOW)

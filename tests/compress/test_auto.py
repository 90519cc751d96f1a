"""`auto`: what it chooses, and that it costs no more than any method alone."""

import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.cost import Network, predict

SLOW = Network(bandwidth="10mbit", latency="100us")
FAST = Network(bandwidth="1000gbit", latency="1us")


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

"""dAD: exact wherever inputs and adjoints account for the gradient, dense wherever they do not."""

import pytest
import torch
import torch.nn.functional as F
from capturable import bounds_of, delivered, network
from capturable import loss_of as loss_of_net
from nets import bounds_of as bounds_of_deep
from nets import deep, grads, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress import DAD, RankDAD
from compress.compressors.base import Matrix, Sizing
from compress.layers import ParameterInfo


class Twice(nn.Module):
    """A weight that its own layer uses, and a function besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inside = nn.Linear(48, 48, dtype=torch.float64)
        self.outside = nn.Linear(48, 48, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outside(self.inside(self.inside(x))) + F.linear(x, self.outside.weight)


def two_uses(rank, rows_by_rank):
    import logging

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("compress").addHandler(handler)
    model, twin = Twice(), Twice()

    def loss(module: nn.Module, worker: int, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(worker)
        return module(torch.randn(rows, 48, generator=generator, dtype=torch.float64)).square().mean()

    example = torch.randn(4, 48, dtype=torch.float64)
    bounds = compress.rank_bounds(model, (example,), loss=lambda y: y.square().mean(), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    worst = 0.0
    for step, rows in enumerate(rows_by_rank):
        ddp.zero_grad()
        loss(ddp, rank, rows[rank]).backward()
        twin.zero_grad()
        for worker in range(2):
            (loss(twin, worker, rows[worker]) / 2).backward()
        found, true = grads(ddp), grads(twin)
        worst = max(worst, *(float((found[name] - true[name]).norm() / true[name].norm()) for name in true))
        assert step + 1 == state.step
    return worst, messages, {name: state.plan[name].method for name in state.plan}


def test_dad_is_exact_for_repeated_uneven_and_outside_uses_and_says_what_it_sends_dense(workers):
    rows = [(4, 4), (4, 1), (9, 2), (3, 9), (4, 0)]
    for worst, messages, methods in workers(2)(two_uses, rows):
        assert worst < 1e-12
        assert methods["inside.weight"] == methods["inside.bias"] == methods["outside.weight"] == "dad"
        assert len(messages) == 1
        assert "outside.weight: inputs and adjoints of its layer do not account" in messages[0]


def odd_sizes(rank):
    """Largest deviation of dAD in float32 at sizes that put headers at odd places."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(31, 33), nn.Linear(33, 29))
    twin = nn.Sequential(nn.Linear(31, 33), nn.Linear(33, 29))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(3, 31)
    bounds = compress.rank_bounds(model, (x,), loss=lambda y: y.square().mean())
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    assert [assignment.method for assignment in state.plan.values()] == ["dad"] * 4 or bounds.world_size == 1
    ddp(x).square().mean().backward()
    twin(x).square().mean().backward()
    found, true = grads(ddp), grads(twin)
    return max(float((found[name] - true[name]).norm() / true[name].norm()) for name in true), state.bytes_sent


@pytest.mark.parametrize("world_size", [1, 2])
def test_dad_serves_odd_sizes_in_float32(workers, world_size):
    for worst, _ in workers(world_size)(odd_sizes):
        assert worst < 1e-5


def under_autocast(rank):
    model = deep(dtype=torch.float32)
    bounds = bounds_of_deep(model, 2, torch.float32)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    sent = []
    for step in range(3):
        before = state.bytes_sent
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ddp, rank, step, torch.float32)
        ddp.zero_grad()
        loss.backward()
        sent.append(state.bytes_sent - before)
    return sent, state.plan.dense.bytes


def test_dad_goes_dense_for_good_where_rows_do_not_account_for_the_gradient(workers):
    for (first, *later), dense in workers(2)(under_autocast):
        assert first > dense  # factors, and then dense
        assert later == [dense] * 2


def called_by_keyword(rank):
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(24, 24, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(input=x)

    model = Keyword()
    bounds = compress.rank_bounds(model, (torch.randn(2, 24, dtype=torch.float64),), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    ddp(torch.randn(2, 24, dtype=torch.float64)).sum().backward()
    return state.bytes_sent == state.plan.bytes


def test_layers_called_by_keyword_are_captured(workers):
    assert workers(2)(called_by_keyword) == [True, True]


def kept_rows(rank):
    """Rows that the capture of a discarded DDP object goes on collecting."""
    model = deep()
    bounds = bounds_of_deep(model, 2)
    states = []
    for _ in range(2):
        ddp = DistributedDataParallel(model)
        states.append(compress.register(ddp, compressor="dad", bounds=bounds))
    for step in range(3):
        loss_of(ddp, rank, step).backward()
    return [sum(map(len, state._capture._keepers.values())) for state in states]


def test_wrapping_anew_ends_the_old_capture(workers):
    assert workers(2)(kept_rows) == [[0, 0]] * 2


SETTINGS = {
    "many buckets": {"bucket_cap_mb": 0.001},
    "views": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}
"""Of DistributedDataParallel."""
ROWS = [(1, 1), (3, 1), (2, 0), (0, 3), (1, 1)]
"""More samples than planned, and empty batches."""


def in_every_setting(rank, bounds):
    found = {}
    for setting, ddp in SETTINGS.items():
        for name in ("linear", "conv2d", "embedding", "gru"):
            rows = [(1, 1)] * 3 if setting == "static" or name == "gru" else ROWS
            result = delivered(rank, bounds[name], name, {"compressor": "dad"}, rows=rows, ddp=ddp)
            found[setting, name] = result["error"]

    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="eager")

    found["compiled"] = delivered(rank, bounds["linear"], "linear", {"compressor": "dad"}, wrap=compiled)["error"]
    return found


def test_dad_is_exact_in_every_setting_of_ddp_with_uneven_and_empty_batches(workers):
    bounds = {name: bounds_of(name, 2) for name in ("linear", "conv2d", "embedding", "gru")}
    for found in workers(2)(in_every_setting, bounds):
        assert {key: error for key, error in found.items() if error > 1e-11} == {}


def not_finite(rank, bounds, name):
    model = network(name)
    wrapped = DistributedDataParallel(model)
    compress.register(wrapped, compressor="dad", bounds=bounds)
    (loss_of_net(wrapped, name, rank, 1, torch.float64) * (float("inf") if rank else 1.0)).backward()
    return [bool(parameter.grad.isfinite().all()) for parameter in model.parameters()]


def test_what_is_not_finite_on_one_worker_reaches_everyone(workers):
    assert workers(2)(not_finite, bounds_of("linear", 2), "linear") == [[False] * 3] * 2


@pytest.mark.parametrize("method", [DAD(), RankDAD()], ids=lambda method: method.kind)
@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_the_mean_is_written_where_the_gradient_lies_but_not_over_what_is_yet_to_be_sent(method, beside):
    info = ParameterInfo("w", (6, 5), torch.float64, capture="linear")
    A, D = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    gradient = torch.full((6, 5), beside, dtype=torch.float64)
    fit = method.fit(Sizing(info, rank=3, bound=3, rows=3, world_size=2))
    matrix = Matrix(info, {"w": gradient}, fit, step=0, seed=0, captured={"inputs": A, "adjoints": D})
    rounds = method.rounds(matrix)
    gathered = torch.stack([next(rounds).tensor] * 2)
    try:
        rest = rounds.send(gathered).tensor
        assert rest.eq(beside).all()
        rounds.send(rest)
    except StopIteration as done:
        mean = done.value["w"]
    assert torch.allclose(mean, D.mT @ A + beside)
    assert (mean.data_ptr() == gradient.data_ptr()) == (beside == 0)

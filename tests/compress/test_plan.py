"""Plans and their registration: what is taken, what is refused, whose names are meant."""

import math
from typing import Literal

import pytest
import torch
from nets import bounds_of, deep, grads, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress.compressors.base import AllReduceMean, Compressor, Fit, Matrix, Payload, Rounds, Sizing, Unfit
from compress.layers import ParameterInfo


class TestPlan:
    def plan(self, compressor, policy="none", *, bottleneck=4, world_size=2, bounded=True):
        model = deep(bottleneck=bottleneck)
        bounds = bounds_of(model, world_size) if bounded else None
        return compress.make_plan(model, compressor, policy, bounds=bounds, world_size=world_size)

    def test_no_matrix_costs_more_than_dense(self):
        plan = self.plan("powersgd", {"kind": "fixed", "rank": 20})
        assert {assignment.method for assignment in plan.values()} == {"dense"}
        assert plan.bytes == plan.dense.bytes

    def test_below_the_bound_nothing_is_oversampled_and_nothing_certified(self):
        at = self.plan("powersgd", "bound")["0.weight"]
        below = self.plan("powersgd", {"kind": "bound", "offset": -1})["0.weight"]
        assert (at.rank, at.fit.columns, at.lossless) == (4, 8, True)
        assert (below.rank, below.fit.columns, below.lossless) == (3, 3, False)

    def test_without_bounds_nothing_low_rank_is_certified(self):
        plan = self.plan("powersgd", {"kind": "fixed", "rank": 4}, bounded=False)
        assert not plan["0.weight"].lossless

    def test_the_cheapest_candidate_on_the_wire_is_taken(self):
        both = self.plan(["powersgd", "dad"], "bound")
        assert both.wire_bytes <= min(self.plan("powersgd", "bound").wire_bytes, self.plan("dad").wire_bytes)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"compressor": "powersdg", "policy": "bound"}, "did you mean 'powersgd'"),
            ({"compressor": "powersgd"}, "needs a rank"),
            ({"compressor": "powersgd", "policy": {"kind": "fixed", "rank": 0}}, "rank: .*greater than or equal to 1"),
            ({"compressor": {"kind": "powersgd", "oversampling": 3}, "policy": "bound"}, r"fields: kind, oversample"),
            ({"compressor": "powersgd", "policy": "bound", "bounded": False}, "needs bounds"),
            ({"compressor": []}, "empty list"),
            ({"compressor": compress.FixedPolicy(rank=1)}, "must be a name, a mapping with a kind, or a Compressor"),
        ],
    )
    def test_mistakes_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            self.plan(**arguments)

    def test_bounds_of_another_network_are_refused(self):
        bounds = bounds_of(deep(width=16), 2)
        with pytest.raises(ValueError, match="another network"):
            compress.make_plan(deep(), "powersgd", "bound", bounds=bounds, world_size=2)

    def test_dad_declines_what_it_cannot_capture(self):
        info = ParameterInfo("conv.weight", (8, 3, 3, 3), torch.float32)
        assert isinstance(compress.DAD().fit(Sizing(info, None, None, 10)), Unfit)
        info = ParameterInfo("linear.weight", (64, 64), torch.float32, capture="linear")
        assert isinstance(compress.DAD().fit(Sizing(info, None, None, None)), Unfit)


def refusals(rank):
    model = deep()
    bounds = bounds_of(model, 3)
    messages = []
    ddp = DistributedDataParallel(model)
    for call in (
        lambda: compress.register(ddp, compressor="powersgd", policy="bound", bounds=bounds),
        lambda: compress.register(model, compressor="dense"),
        lambda: compress.register(ddp),
        lambda: compress.register(ddp, compress.make_plan(deep(width=16), "dense", world_size=2)),
        lambda: compress.register(ddp, compress.make_plan(deep(), "dense", world_size=4)),
        lambda: compress.register(ddp, "powersgd"),
        lambda: compress.register(ddp, compressor="dense", audit=50),
    ):
        try:
            call()
            messages.append("accepted")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_register_refuses_what_cannot_be_right(workers):
    words = [
        "world_size=3",
        "wrapped in DistributedDataParallel",
        "either a plan or",
        "another network",
        "world_size=4",
        "must come from make_plan",
        "{'every': 50}",
    ]
    for messages in workers(2)(refusals):
        assert [word in message for word, message in zip(words, messages, strict=True)] == [True] * len(words)


def confusing_names(rank):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 24, bias=False, dtype=torch.float64)
            self.module = nn.ModuleDict({"fc": nn.Linear(24, 24, bias=False, dtype=torch.float64)})
            self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
            self.extra = nn.Linear(24, 24, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module["fc"](self.fc(x)) + self.extra(x)

    torch.manual_seed(rank)
    model = Inner()
    x = torch.randn(4, 24, dtype=torch.float64)
    bounds = compress.rank_bounds(model, (x,), world_size=2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["extra.bias"])
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="dad", bounds=bounds)
    (ddp(x).square().sum() * (rank + 1)).backward()
    return (
        sorted(state.plan),
        model.module["fc"].weight.grad.clone(),
        sorted(bounds),
        bounds["module.module.fc.weight"].rank,
    )


def test_a_submodule_called_module_frozen_and_ignored_parameters(workers):
    first, second = workers(2)(confusing_names)
    assert first[0] == ["extra.weight", "fc.weight", "module.fc.weight"]
    assert torch.equal(first[1], second[1])
    assert first[2] == ["extra.weight", "fc.weight", "frozen", "module.fc.weight"]
    assert first[3] == 8


def wrapped_twice(rank):
    model = deep()
    bounds = bounds_of(model, 2)
    ddp = DistributedDataParallel(torch.compile(model, backend="eager"))
    state = compress.register(ddp, compressor="powersgd", policy="bound", bounds=bounds)
    loss_of(ddp, rank, 0).backward()
    return sorted(state.plan) == sorted(bounds), state.step


def test_prefixes_of_ddp_and_compile_are_stripped(workers):
    assert workers(2)(wrapped_twice) == [(True, 1)] * 2


class Sign(Compressor):
    """The method of docs/compressors.md."""

    kind: Literal["sign"] = "sign"

    def fit(self, sizing: Sizing) -> Fit:
        size = math.prod(sizing.matrix.shape)
        return Fit((Payload(AllReduceMean, size),), rank=min(sizing.matrix.matrix), lossless=False)

    def rounds(self, matrix: Matrix) -> Rounds:
        mean = yield AllReduceMean(matrix.gradients[matrix.info.name].sign())
        return {matrix.info.name: mean}


def sent_by_sign(rank):
    ddp = DistributedDataParallel(deep())
    compress.register(ddp, compressor=Sign())
    loss_of(ddp, rank, 0).backward()
    return grads(ddp)["0.weight"]


def test_a_method_of_ones_own_is_one_small_class(workers):
    first, second = workers(2)(sent_by_sign)
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) <= {-1.0, 0.0, 1.0}

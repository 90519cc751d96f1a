"""Capture: A and Δ of each kind of layer account for its gradient, which no worker forms."""

import copy
import io

import pytest
import torch
from capturable import NETS, all_bounds, bounds_of, delivered, loss_of, network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import compress


def every_kind(rank, bounds, register, settings):
    results = {}
    for name in NETS:
        found = delivered(rank, bounds[name], name, register, **settings)
        results[name] = (found["error"], found["dense"], found["sent"] / found["planned"])
    return results


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 2), (3, 1)])
def test_every_kind_of_layer_is_exact_in_float64(workers, world_size, accumulate):
    rows = [(1,) * world_size] * 2
    bounds = all_bounds(world_size, accumulate)
    for results in workers(world_size)(every_kind, bounds, {"compressor": "dad"}, {"rows": rows}):
        assert {name: error for name, (error, _, _) in results.items() if error > 1e-11} == {}
        assert {name: share for name, (_, _, share) in results.items() if share != len(rows)} == {}
        if world_size == 1:  # with more workers and rows some layers are cheaper dense
            assert {name: dense for name, (_, dense, _) in results.items() if dense} == {}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_every_kind_of_layer_keeps_its_type(workers, dtype, limit):
    for results in workers(1)(every_kind, all_bounds(1), {"compressor": "dad"}, {"rows": [(1,)], "dtype": dtype}):
        assert {name: error for name, (error, _, _) in results.items() if error > limit} == {}


class Products(TorchDispatchMode):
    """Shapes of all matrix products, and whether a convolution's weight got a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for result in output if isinstance(output, tuple) else (output,):
            if isinstance(result, torch.Tensor) and ("mm" in func.name() or "convolution" in func.name()):
                self.shapes.add(tuple(result.shape))
        return output


def formed(rank, bounds, name):
    """Shapes of products in a backward pass without exchange: as captured, and by the plain network."""
    state = delivered(rank, bounds, name, {"compressor": "dad"}, rows=[(1,)])["state"]
    assert state.plan.bytes < state.plan.dense.bytes
    model = network(name)
    wrapped = DistributedDataParallel(model)
    compress.register(wrapped, plan=state.plan)
    found = []
    for module in (wrapped, network(name)):
        with wrapped.no_sync():
            loss = loss_of(module, name, 0, 1, torch.float64)
        with Products() as products:
            loss.backward()
        found.append(products.shapes)
    weights = [parameter for key, parameter in model.named_parameters() if "weight" in key]
    shapes = {shape for weight in weights for shape in [tuple(weight.shape), tuple(weight.shape)[::-1]]}
    return [bool(one & shapes) for one in found], all(bool((weight.grad == 0).all()) for weight in weights)


@pytest.mark.parametrize("name", ["linear", "conv2d", "lstm"])
def test_no_worker_forms_its_own_gradient(workers, name):
    for (captured, plain), zeros in workers(1)(formed, bounds_of(name, 1), name):
        assert plain
        assert not captured
        assert zeros


WIDTH = 24


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.second = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.way = "plain"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        if self.way in ("recomputed", "recomputed anew"):
            inner = checkpoint(lambda h: self.second(h).sin(), hidden, use_reentrant=self.way == "recomputed anew")
        elif self.way == "functional":
            inner = torch.func.functional_call(self.second, {"weight": 2 * self.second.weight}, (hidden,))
        elif self.way == "vmapped":
            inner = torch.func.vmap(self.second)(hidden)
        elif self.way == "not differentiated":
            with torch.no_grad():
                inner = self.second(hidden)
            inner = inner + hidden
        elif self.way == "twice":
            inner = self.second(self.second(hidden).tanh())
        elif self.way == "in one dimension":
            inner = torch.stack([self.second(row) for row in hidden])
        else:
            inner = self.second(hidden)
        return self.second(inner) if self.way == "not differentiated" else inner


def once(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()


def penalised(model: nn.Module, x: torch.Tensor) -> None:
    """A penalty on the gradient of the input: the weight's gradient comes through a second derivative."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().mean(), x, create_graph=True)
    (slope.square().sum() * 100).backward()


def differentiated_again(model: nn.Module, x: torch.Tensor) -> None:
    """Gradients that accumulate with a graph, as second-order methods want them."""
    with getattr(model, "no_sync", torch.enable_grad)():
        model(x).square().mean().backward(create_graph=True)
    network = getattr(model, "module", model)
    slope = network.second.weight.grad
    for parameter in network.parameters():
        parameter.grad = None  # of the first derivative, whose graph would keep itself alive
    model(x).square().mean().add(slope.square().sum()).backward()


def beside(model: nn.Module, x: torch.Tensor) -> None:
    """Gradients that are asked for go to whoever asks, and nowhere else."""
    y = model(x.requires_grad_()).square().mean()
    network = getattr(model, "module", model)
    asked = torch.autograd.grad(y, [network.second.weight, x], retain_graph=True)
    assert all(float(gradient.norm()) > 0 for gradient in asked)
    y.backward()


def thrown_away(model: nn.Module, x: torch.Tensor) -> None:
    with getattr(model, "no_sync", torch.enable_grad)():
        once(model, 3 * x)
    model.zero_grad()
    once(model, x)


def outside(model: nn.Module, x: torch.Tensor) -> None:
    """The network alone, past its DDP wrapper, has its gradients as ever."""
    network = getattr(model, "module", model)
    once(network, x)
    assert float(network.second.weight.grad.norm()) > 0
    network.zero_grad()
    once(model, x)


def overwritten(model: nn.Module, x: torch.Tensor) -> None:
    """Inputs of a pass that accumulates may be overwritten once it is over."""
    buffer = x.clone()
    with getattr(model, "no_sync", torch.enable_grad)():
        once(model, buffer)
    buffer.mul_(2).add_(1)
    once(model, buffer)


def masked(model: nn.Module, x: torch.Tensor) -> None:
    """A hook on a weight changes its gradient."""
    network = getattr(model, "module", model)
    handle = network.second.weight.register_hook(lambda gradient: gradient * 0.25)
    once(model, x)
    handle.remove()


WAYS = {
    "recomputed": once,
    "recomputed anew": once,
    "functional": once,
    "vmapped": once,
    "not differentiated": once,
    "twice": once,
    "in one dimension": once,
    "penalised": penalised,
    "differentiated again": differentiated_again,
    "asked for": beside,
    "thrown away": thrown_away,
    "outside": outside,
    "overwritten": overwritten,
    "masked": masked,
}
"""Ways of using a network, and how a step goes."""
DENSE = {"functional", "vmapped", "penalised", "masked"}
"""Of them those that give a weight a gradient beside its A and Δ."""


def ways(rank, kind):
    """For each way: the largest deviation over two steps, and whether anything was sent beside what was planned."""
    deviations = {}
    example = torch.randn(2, WIDTH, dtype=torch.float64)
    bounds = compress.rank_bounds(Deep(), (example,), world_size=2, accumulation_steps=2)  # or less
    for way, step in WAYS.items():
        model, twin = Deep(), Deep()
        model.way = twin.way = way
        wrapped = DistributedDataParallel(model)
        state = compress.register(wrapped, compressor=kind, policy="bound", bounds=bounds)
        worst = 0.0
        for turn in range(2):
            batches = [
                torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(10 * turn + worker), dtype=torch.float64)
                for worker in range(2)
            ]
            wrapped.zero_grad()
            step(wrapped, batches[rank].clone())
            total = {name: torch.zeros_like(parameter) for name, parameter in twin.named_parameters()}
            for batch in batches:
                twin.zero_grad()
                step(twin, batch.clone())
                for name, parameter in twin.named_parameters():
                    total[name] += (0 if parameter.grad is None else parameter.grad) / 2
            for name, parameter in model.named_parameters():
                worst = max(worst, float((parameter.grad - total[name]).norm() / total[name].norm().clamp(min=1e-9)))
        memories = state.state_dict()["memories"]
        deviations[way] = worst, any({"sent_dense", "whole"} & set(memory) for memory in memories.values())
    return deviations


@pytest.mark.parametrize("kind", ["dad", "rank_dad"])
def test_whatever_else_is_under_way_stays_right(workers, kind):
    for deviations in workers(2)(ways, kind):
        assert {way: error for way, (error, _) in deviations.items() if error > 1e-11} == {}
        assert {way for way, (_, dense) in deviations.items() if dense} == DENSE


def kept_model(rank, bounds):
    """A captured network copied, saved, hooked, wrapped anew and compiled."""
    state = delivered(rank, bounds, "conv2d", {"compressor": "dad"}, rows=[(1,)])["state"]
    model = network("conv2d")
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("forward"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    wrapped = DistributedDataParallel(model)
    compress.register(wrapped, plan=state.plan)
    loss_of(wrapped, "conv2d", 0, 1, torch.float64).backward()
    hooks = list(seen)
    model[0]._forward_hooks.clear()
    model[0]._backward_hooks.clear()

    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    others = [copy.deepcopy(model), torch.load(stream, weights_only=False)]
    others.append(copy.deepcopy(others[0]))  # a copy of a copy
    gradients = []
    for other in [network("conv2d"), model, *others]:
        other.zero_grad()
        loss_of(other, "conv2d", 0, 1, torch.float64).backward()
        gradients.append(other[0].weight.grad.clone())
    captured = compress.make_plan(
        others[2],
        "dad",
        bounds=bounds,
        world_size=1,
    )["0.weight"]
    return hooks, gradients, captured.info.capture, list(model.state_dict())


def test_copies_and_pickles_of_a_captured_network_are_plain_networks(workers):
    for hooks, gradients, captured, names in workers(1)(kept_model, bounds_of("conv2d", 1)):
        assert hooks == ["forward", "backward"]
        assert all(torch.allclose(gradients[0], gradient, rtol=1e-13) for gradient in gradients)
        assert captured == "convolution"
        assert names == list(network("conv2d").state_dict())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(9, 9, max_norm=1.0), "max_norm"),
        (nn.Embedding(9, 9, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.ConvTranspose2d(4, 4, 2), "nn.Conv1d to 3d"),
        (nn.MultiheadAttention(8, 2), "with torch's own forward"),
        (nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), "has for itself"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_captured_is_planned_dense_and_says_why(layer, reason):
    plan = compress.make_plan(nn.ModuleDict({"layer": layer}), "dad", world_size=2)
    assert {assignment.method for assignment in plan.values()} == {"dense"}
    assert all(reason in assignment.reason for assignment in plan.matrices)

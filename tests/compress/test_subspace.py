"""Subspace: exact where the weights give the space, with one small all-reduce; near elsewhere."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from measured import gradients
from nets import grads
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compress
from compress import Subspace
from compress.bounds import Basis
from compress.compressors.base import Fit, Matrix
from compress.layers import ParameterInfo


def chain(*widths: int, bias: bool = True, alpha: float | None = None, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias, dtype=dtype)]
        layers += [nn.LeakyReLU(alpha)] if alpha is not None else []
    return nn.Sequential(*layers)


class Tied(nn.Module):
    """A decoder that is the encoder turned around, behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(24, 4, bias=False)
        self.middle = nn.Linear(24, 24)
        self.again = nn.Linear(24, 4, bias=False)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.middle(F.linear(self.encoder(x), self.encoder.weight.t())))


class Elman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.hidden = nn.Linear(16, 24), nn.Linear(24, 24, bias=False)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.inward(x[:, 0])
        for t in range(1, x.shape[1]):
            state = self.inward(x[:, t]) + self.hidden(state)
        return self.out(state)


class Residual(nn.Module):
    """Blocks of LayerNorm and a bottleneck, without activations."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(24, 3)
        self.widen = nn.Linear(3, 32)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(self.inward(x))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(16, 4), nn.Linear(4, 24)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.narrow(x))
        return self.attention(x, x, x, need_weights=False)[0]


def frozen() -> nn.Module:
    model = chain(24, 4, 24, 24, 24)
    model[2].weight.requires_grad_(False)
    return model


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 2, 1),
        nn.Conv2d(2, 16, 1),
        nn.Conv2d(16, 32, 3, padding=1, groups=2),
        nn.ConvTranspose2d(32, 16, 2, stride=2),
        nn.Conv2d(16, 3, 1),
    )


NETWORKS = {
    "chain": (lambda: chain(24, 24, 4, 24, 24), (24,)),
    "classes": (lambda: chain(24, 24, 8, 24, 24, 3), (24,)),
    "tied": (Tied, (24,)),
    "elman": (Elman, (5, 16)),
    "residual": (Residual, (24,)),
    "attention": (Attention, (3, 16)),
    "frozen": (frozen, (24,)),
    "convolutions": (convolutions, (3, 6, 6)),
}


def batch(shape, rank, step, dtype):
    return torch.randn(40, *shape, generator=torch.Generator().manual_seed(100 * step + rank), dtype=dtype)


def objective(name):
    if name == "classes":
        return lambda y: F.cross_entropy(y, torch.arange(len(y)) % 3)
    return lambda y: y.square().mean() + y.sum() / y.numel()


def delivered(rank, world_size, name, dtype, steps):
    """Worst relative error of any matrix over some steps of training, and how many matrices are projected."""
    make, shape = NETWORKS[name]
    torch.manual_seed(5)
    model, loss = make().to(dtype), objective(name)
    torch.manual_seed(5)
    twin = make().to(dtype)
    bounds = compress.rank_bounds(model, (batch(shape, 0, 0, dtype),), loss=loss, world_size=world_size)
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.005)
    plan = compress.make_plan(ddp, "subspace", bounds=pickle.loads(pickle.dumps(bounds)), world_size=world_size)
    state = compress.register(ddp, pickle.loads(pickle.dumps(plan)))
    projected = {name for name, assignment in plan.items() if assignment.method == "subspace"}
    assert all(plan[name].lossless for name in projected)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    worst = 0.0
    for step in range(steps):
        twin.load_state_dict(model.state_dict())
        optimiser.zero_grad()
        loss(ddp(batch(shape, rank, step, dtype))).backward()
        true = gradients(twin, [lambda m, r=r, s=step: loss(m(batch(shape, r, s, dtype))) for r in range(world_size)])
        found = grads(model)
        for matrix in projected:
            error = (found[matrix].flatten(1) - true[matrix]).norm() / true[matrix].norm()
            worst = max(worst, float(error))
        optimiser.step()
    assert state.bytes_sent == steps * plan.bytes
    return worst, len(projected)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_delivered_is_the_true_mean_while_the_network_learns(workers, name):
    for worst, projected in workers(2)(delivered, 2, name, torch.float64, 4):
        assert projected
        assert worst < 1e-12


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_number_of_workers(workers, world_size):
    for worst, _ in workers(world_size)(delivered, world_size, "classes", torch.float64, 3):
        assert worst < 1e-12


@pytest.mark.parametrize("name", ["chain", "classes", "residual", "elman"])
def test_float32_is_as_exact_as_its_roundoff(workers, name):
    for worst, _ in workers(2)(delivered, 2, name, torch.float32, 25):
        assert worst < 1e-5


def bottleneck(rank):
    model = chain(256, 8, 256, 256, 10, bias=False)
    x = torch.randn(30, 256, dtype=torch.float64)
    bounds = compress.rank_bounds(model, (x,), loss=F.cross_entropy, targets=(torch.arange(30) % 10,), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="subspace", bounds=bounds)
    F.cross_entropy(ddp(x), torch.arange(30) % 10).backward()
    return state.plan["2.weight"], state.bytes_sent == state.plan.bytes, bounds["2.weight"].basis_sizes()


def test_seventy_two_numbers_where_powersgd_sends_4096(workers):
    for assignment, as_planned, sizes in workers(2)(bottleneck):
        assert assignment.bytes == (72 + 1) * 8
        assert [payload.numbers for payload in assignment.fit.payloads] == [72 + 1]  # one tells whether it fits
        assert (assignment.lossless, assignment.rank, sizes) == (True, 8, (8, 9))
        assert as_planned


def refusals(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 2), nn.Linear(2, 32), nn.BatchNorm1d(32), nn.Linear(32, 32))
    x = torch.randn(64, 32)
    bounds = compress.rank_bounds(model, (x,), world_size=2)
    plan = compress.make_plan(model, "subspace", bounds=bounds, world_size=2)
    blind = compress.make_plan(model, "subspace", world_size=2)
    ignored = chain(24, 4, 24, 24, 24)
    bounds = compress.rank_bounds(ignored, (torch.randn(64, 24, dtype=torch.float64),), world_size=2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(ignored, ["2.weight"])
    ddp = DistributedDataParallel(ignored)
    try:
        compress.register(ddp, compressor="subspace", bounds=bounds)
        message = "accepted"
    except ValueError as error:
        message = str(error)
    return plan["3.weight"], blind["3.weight"], bounds["3.weight"].rank, message


def test_what_it_cannot_serve_is_sent_dense_and_says_why(workers):
    for behind_a_norm, blind, _, message in workers(2)(refusals):
        assert behind_a_norm.method == "dense"
        assert "weights alone give no basis" in behind_a_norm.reason
        assert "pass bounds=" in blind.reason
        assert message.startswith("2.weight is ignored by DistributedDataParallel")


def misfit(rank):
    """Another loss than the bounds were made for, and an overflow in the first step."""
    model = chain(32, 32, 32, 3)
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    bounds = compress.rank_bounds(model, (x,), loss=F.cross_entropy, targets=(torch.arange(40) % 3,), world_size=2)
    ddp = DistributedDataParallel(model)
    state = compress.register(ddp, compressor="subspace", bounds=bounds)
    twin = chain(32, 32, 32, 3)
    losses = [
        lambda y, r: F.cross_entropy(y, torch.arange(40) % 3) * (torch.inf if r else 1.0),
        lambda y, r: F.cross_entropy(y, torch.arange(40) % 3),
        lambda y, r: y.square().sum() if r else F.cross_entropy(y, torch.arange(40) % 3),
        lambda y, r: y.square().sum(),
    ]
    found = []
    for loss in losses:
        ddp.zero_grad()
        loss(ddp(x), rank).backward()
        batches = [torch.randn(40, 32, generator=torch.Generator().manual_seed(r), dtype=torch.float64) for r in (0, 1)]
        true = gradients(twin, [lambda m, r=r, x=x, loss=loss: loss(m(x), r) for r, x in enumerate(batches)])
        name = "0.weight"
        error = float((grads(ddp)[name] - true[name]).norm() / true[name].norm())
        found.append((error, "sent_dense" in state.state_dict()["memories"][name]))
    return state.plan["0.weight"].method, found


def test_a_gradient_outside_the_spaces_is_sent_dense_by_all(workers):
    for method, (overflow, fits, odd, after) in workers(2)(misfit):
        assert method == "subspace"
        assert overflow[0] != overflow[0]
        assert not overflow[1]
        assert fits[0] < 1e-12
        assert not fits[1]
        assert max(odd[0], after[0]) < 1e-12  # one worker's gradient lay outside; both sent theirs dense
        assert odd[1]


def near_by_hand(steps, apart):
    """Two workers' stationary gradients, most of them outside the basis: delivered, true mean, residuals' norms.

    Where they are apart, their difference, which cancels in the mean, has directions that the mean has not.
    """
    extra = 2 if apart else 4
    draw = torch.Generator().manual_seed(0)
    common, own = (torch.randn(n, 20, 24, generator=draw, dtype=torch.float64) for n in (1, 2))
    if apart:
        common = common[:, :, :3] @ common[:, :3]
    gradient = common + (own - own.mean(dim=0) if apart else 0 * own)
    basis = Basis(adjoint=torch.linalg.qr(torch.randn(20, 2, generator=draw, dtype=torch.float64)).Q)
    info = ParameterInfo("w", (20, 24), torch.float64)
    method, fit = Subspace(near=True, extra=extra), Fit((), rank=6, lossless=False, columns=extra)
    memories, delivered, norms = [{}, {}], torch.zeros(20, 24, dtype=torch.float64), []
    for step in range(steps):
        matrices = [
            Matrix(info, {"w": gradient[i].clone()}, fit, step, 0, memory=memories[i], basis=basis) for i in (0, 1)
        ]
        rounds = [method.rounds(matrix) for matrix in matrices]
        mean = sum(next(algorithm).tensor for algorithm in rounds) / 2
        for algorithm in rounds:
            try:
                algorithm.send(mean)
            except StopIteration as done:
                answer = done.value["w"]
        delivered += answer
        norms.append(max(float(memory["residual"].norm() / common.norm()) for memory in memories))
    return delivered, steps * gradient.mean(dim=0), sum(memory["residual"] for memory in memories) / 2, norms


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("apart", [False, True])
def test_near_spaces_lose_nothing_for_good_and_residuals_stay_bounded(apart):
    delivered, true, residual, norms = near_by_hand(2000, apart)
    assert (delivered + residual - true).norm() < 1e-10 * true.norm()
    assert (delivered - true).norm() < 0.02 * true.norm()
    assert max(norms[1000:]) < 1.2 * max(norms[:1000])  # a direction never sent would add its share 2,000 times


def near(rank, dtype, steps):
    """Largest residual beside the gradients, the plan's word, and the type of what is delivered."""
    model = chain(24, 24, 2, 24, 24, alpha=0.3, dtype=dtype)
    x, target = (torch.randn(40, 24, generator=torch.Generator().manual_seed(10 * rank + i)).to(dtype) for i in (0, 1))
    bounds = compress.rank_bounds(model, (x,), loss=F.mse_loss, targets=(target,), world_size=2)
    ddp = DistributedDataParallel(model)
    audit = {"every": steps - 1}
    method = {"kind": "subspace", "near": True}
    state = compress.register(ddp, compressor=method, bounds=bounds, audit=audit)
    assignments = [assignment for assignment in state.plan.values() if assignment.method == "subspace"]
    for _ in range(steps):
        ddp.zero_grad()
        F.mse_loss(ddp(x), target).backward()
    finite = all(gradient.isfinite().all() and gradient.dtype == dtype for gradient in grads(ddp).values())
    errors = [row.compression_error for row in state.audit_rows() if row.method == "subspace"]
    return (
        [assignment.lossless for assignment in assignments],
        finite,
        errors,
        state.bytes_sent <= steps * state.plan.bytes,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_near_spaces_and_coarse_types_are_never_certified(workers, dtype):
    for number, (lossless, finite, errors, within) in enumerate(workers(2)(near, dtype, 8)):
        assert lossless
        assert not any(lossless)
        assert finite
        assert within
        assert bool(errors) == (number == 0)
        assert all(0 < error < 1 for error in errors)

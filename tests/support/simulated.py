"""Workers in one process: the algorithms themselves in lockstep, without collectives, measured in every step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import compress
from compress.compressors.base import AllReduceMean, Matrix, Orthonormalise, Rounds
from compress.compressors.flush import flush
from compress.compressors.orthonormal import orthonormal
from compress.matrix import as_matrix
from compress.plan import Plan
from compress.policies import Observation
from models import DATA, MODELS

Gradients = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Measured:
    """One matrix in one step: what was true, what went in, and what came out; each m × n, float64."""

    G: Tensor
    M: Tensor
    delivered: Tensor

    @property
    def compression_error(self) -> float:
        """‖M − Ĝ‖_F / ‖M‖_F, 0 for a zero gradient."""
        norm = float(self.M.norm())
        return float((self.M - self.delivered).norm()) / norm if norm else 0.0

    def observation(self, step: int, rank: int) -> Observation:
        """What an audit tells the policy."""
        spectrum = torch.linalg.svdvals(self.G)
        roundoff = max(self.G.shape) * torch.finfo(torch.float32).eps * float(spectrum[0])
        return Observation(
            step=step,
            rank=rank,
            measured_rank=int((spectrum > roundoff).sum()),
            gradient_norm=float(self.G.norm()),
            spectrum=tuple(spectrum.tolist()),
            input_norm=float(self.M.norm()),
            input_spectrum=tuple(torch.linalg.svdvals(self.M).tolist()),
            compression_error=self.compression_error,
        )


class Simulation:
    """A group of workers that carries out a plan, and plans anew from audits every so many steps.

    Attributes:
        plan: what is carried out.
        observed: by name, what audits saw.
        step: steps done.
        errors: by name, the compression error of each step.
        bytes: of the matrices, as planned, in each step.
    """

    def __init__(self, plan: Plan, every: int) -> None:
        self.plan = plan
        self.step = 0
        self.observed: dict[str, list[Observation]] = {assignment.info.name: [] for assignment in plan.matrices}
        self.errors: dict[str, list[float]] = {name: [] for name in self.observed}
        self.bytes: list[int] = []
        self._every = every
        self._memories: dict[str, list[dict[str, Tensor]]] = {
            name: [{} for _ in range(plan.world_size)] for name in self.observed
        }

    def exchange(self, gradients: Sequence[Gradients]) -> dict[str, Tensor]:
        """One step: each worker's gradients, by name; returns the mean that is delivered."""
        self.bytes.append(sum(assignment.bytes for assignment in self.plan.matrices))
        delivered = {name: torch.stack([own[name] for own in gradients]).mean(0) for name in gradients[0]}
        for name in self.observed:
            measured = self._run(name, [own[name] for own in gradients])
            delivered[name] = measured.delivered.to(delivered[name].dtype).view_as(delivered[name])
            self.errors[name].append(measured.compression_error)
            if self.step % self._every == 0:
                self.observed[name].append(measured.observation(self.step, self.plan[name].rank))
        if self.step % self._every == 0 and self.plan.planner is not None and self.plan.planner.adaptive:
            self._change(self.plan.planner.plan(self.observed, self.plan.decided))
        self.step += 1
        return delivered

    def between_audits(self, name: str) -> list[float]:
        """Compression errors of the steps that no rank was chosen by."""
        return [error for step, error in enumerate(self.errors[name]) if step % self._every]

    def _run(self, name: str, gradients: Sequence[Tensor]) -> Measured:
        assignment = self.plan[name]
        G = torch.stack([as_matrix(gradient) for gradient in gradients]).to(torch.float64).mean(0)
        matrices = [
            Matrix(
                info=assignment.info,
                gradients={name: as_matrix(gradient).clone()},
                fit=assignment.fit,
                step=self.step,
                seed=0,
                memory=memory,
                certified=assignment.lossless,
            )
            for gradient, memory in zip(gradients, self._memories[name], strict=True)
        ]
        residuals = [matrix.memory["residual"] for matrix in matrices if "residual" in matrix.memory]
        M = G + sum(residuals).to(torch.float64) / len(matrices) if residuals else G  # type: ignore[union-attr]
        method = assignment.compressor
        owed = bool(residuals) and not method.feeds_back(matrices[0])
        rounds = [flush(matrix, method) if owed else method.rounds(matrix) for matrix in matrices]
        return Measured(G, M, as_matrix(in_lockstep(rounds)[name]).to(torch.float64))

    def _change(self, plan: Plan) -> None:
        for name, memories in self._memories.items():
            if plan[name].method != self.plan[name].method:
                for memory in memories:
                    for key in memory.keys() - {"residual"}:
                        del memory[key]
        self.plan = plan


def in_lockstep(workers: Sequence[Rounds]) -> dict[str, Tensor]:
    """Answer what the workers of one matrix ask for until they deliver; what the first one delivers."""
    asked = [next(rounds) for rounds in workers]
    while True:
        delivered = []
        following = []
        for rounds, answer in zip(workers, _answers(asked), strict=True):
            try:
                following.append(rounds.send(answer))
            except StopIteration as done:
                delivered.append(done.value)
        if delivered:
            first: dict[str, Tensor] = delivered[0]
            return first
        asked = following


def _answers(asked: Sequence[object]) -> list[Tensor]:
    if isinstance(asked[0], Orthonormalise):
        return [orthonormal(own.factor[None])[0] for own in asked if isinstance(own, Orthonormalise)]
    tensors = [own.tensor for own in asked if isinstance(own, AllReduceMean)]
    mean = torch.stack(tensors).mean(0)
    return [mean.clone() for _ in tensors]


def train_digits(
    policy: Any,
    alpha: float,
    batch_size: int | None,
    *,
    compressor: Any = "powersgd",
    steps: int = 600,
    every: int = 25,
    world_size: int = 2,
    width: int = 64,
    bottleneck: int = 8,
    seed: int = 0,
) -> tuple[Simulation, float]:
    """Train an MLP of four layers on the digits, by SGD with momentum; the simulation, and the last worker's loss.

    Args:
        policy: of the ranks.
        alpha: slope of its Leaky-ReLUs.
        batch_size: of all workers together; None takes all data in every step.
        compressor: the method.
        steps: of SGD.
        every: so many steps an audit.
        world_size: workers.
        width: of the hidden layers.
        bottleneck: of the middle one.
        seed: of weights and batches.
    """
    data = DATA["digits"]().load(0)
    inputs, labels = data.train.inputs, data.train.labels
    whole = len(data.train) // world_size * world_size
    rows = batch_size or whole
    torch.manual_seed(seed)
    net = MODELS["mlp"](width=width, bottleneck=bottleneck, alpha=alpha).build(data.signature)
    share = slice(rows // world_size)
    bounds = compress.rank_bounds(
        net, (inputs[share],), loss=F.cross_entropy, targets=(labels[share],), world_size=world_size
    )
    simulation = Simulation(compress.make_plan(net, compressor, policy, bounds=bounds, world_size=world_size), every)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        chosen = torch.arange(whole) if batch_size is None else torch.randperm(len(data.train))[:rows]
        gradients = []
        for own in chosen.chunk(world_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs[own]), labels[own])
            loss.backward()
            gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
        delivered = simulation.exchange(gradients)
        for name, parameter in net.named_parameters():
            parameter.grad = delivered[name].view_as(parameter)
        optimizer.step()
    return simulation, float(loss.detach())

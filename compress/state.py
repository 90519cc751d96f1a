"""What compression keeps between steps, and how one step goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from compress.audit.auditor import AuditRow, AuditSettings, AuditStep
from compress.compressors.base import Matrix, Rounds
from compress.compressors.dad import Capture
from compress.exchange import Exchange, Pending, Request
from compress.layers import named_parameters
from compress.plan import Plan


@dataclass
class _Wave:
    """Algorithms that wait for the answers of one launch, in the order of their requests."""

    algorithms: list[Rounds]
    pending: Pending


@dataclass
class _Step:
    """One step under way, from the first bucket to the last."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    delivered: dict[str, Tensor] = field(default_factory=dict)
    waves: list[_Wave] = field(default_factory=list)
    buckets: list[tuple[Tensor, torch.futures.Future[Tensor]]] = field(default_factory=list)


class CompressionState:
    """Carries out a plan, bucket by bucket.

    1. Each bucket's hook starts the algorithms whose gradients have arrived and launches their first
       requests as one collective, which overlaps the rest of the backward pass.
    2. The last bucket's hook waits for them in bucket order and carries on with all algorithms of the
       step together, one collective a round. No collective is issued from a callback, and all are
       issued in bucket order, which is the same on every worker: so none can cross.
    3. The delivered gradients are written into the buckets and their futures completed.

    Everything kept between steps is keyed by parameter name, since DDP rebuilds its buckets.

    Attributes:
        plan: what is carried out.
        step: steps done.
        exchange: counts bytes and time of gradients.
        audit_exchange: the same of audits, kept apart.
        audit_seconds: time spent in audits.
        audits: rows of all audited steps, on rank 0.
    """

    def __init__(self, plan: Plan, model: DistributedDataParallel, audit: AuditSettings, seed: int) -> None:
        self.plan = plan
        self.step = 0
        self.exchange = Exchange(model.process_group)
        self.audit_exchange = Exchange(model.process_group)
        self.audit_seconds = 0.0
        self.audits: list[AuditRow] = []
        self._audit = audit
        self._seed = seed
        self._memories: dict[str, dict[str, Tensor]] = {}
        self._names = {id(parameter): name for name, parameter in named_parameters(model).items()}
        # A captured layer's bias is delivered by its weight's algorithm, which waits for both.
        self._members = {
            name: (name, assignment.info.bias) if assignment.info.bias is not None else (name,)
            for name, assignment in plan.items()
            if assignment.compressor.captures and assignment.info.is_matrix
        }
        self._owner = {member: name for name, members in self._members.items() for member in members}
        self._capture: Capture | None = None
        self._current = _Step()

    def attach(self, model: DistributedDataParallel, hook: Callable[..., Any]) -> None:
        """Register the hook, and capture what the plan's methods need; called once."""
        model.register_comm_hook(self, hook)
        layers = {self.plan[name].info.linear: name for name in self._members}
        self._capture = Capture(model, {layer: name for layer, name in layers.items() if layer is not None})

    @property
    def bytes_sent(self) -> int:
        """Bytes this worker has handed to collectives for gradients, audits apart."""
        return self.exchange.bytes

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Take one bucket of gradients; its future completes in the last bucket's call."""
        current, buffer = self._current, bucket.buffer()
        devices: list[int | str | torch.device] | None = [buffer.device] if buffer.device.type == "cuda" else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        current.buckets.append((buffer, future))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            current.gradients[self._names[id(parameter)]] = gradient
        ready = self._ready(current, [self._names[id(parameter)] for parameter in bucket.parameters()])
        self._advance(current, [(self._begin(current, name), None) for name in ready])
        if bucket.is_last():
            self._current = _Step()
            self._finish(current)
        return future

    def _ready(self, current: _Step, arrived: list[str]) -> list[str]:
        """The parameters whose algorithm can start, now that these gradients have arrived too."""
        owners = dict.fromkeys(self._owner.get(name, name) for name in arrived)
        return [
            owner for owner in owners if all(name in current.gradients for name in self._members.get(owner, (owner,)))
        ]

    def _begin(self, current: _Step, name: str) -> Rounds:
        assignment = self.plan[name]
        matrix = Matrix(
            info=assignment.info,
            gradients={member: current.gradients[member] for member in self._members.get(name, (name,))},
            fit=assignment.fit,
            step=self.step,
            seed=self._seed,
            memory=self._memories.setdefault(name, {}),
            captured=self._capture.take(name) if self._capture is not None else {},
        )
        current.matrices.append(matrix)
        return assignment.compressor.rounds(matrix)

    def _advance(self, current: _Step, algorithms: Sequence[tuple[Rounds, Tensor | None]]) -> None:
        """Send each algorithm its answer (None to begin), and launch what they ask for next as one wave."""
        waiting: list[Rounds] = []
        requests: list[Request] = []
        for algorithm, answer in algorithms:
            try:
                requests.append(next(algorithm) if answer is None else algorithm.send(answer))
                waiting.append(algorithm)
            except StopIteration as done:
                current.delivered.update(done.value)
        if requests:
            current.waves.append(_Wave(waiting, self.exchange.start(requests)))

    def _finish(self, current: _Step) -> None:
        audit = AuditStep(self.audit_exchange, self.plan, self.step) if self._audit.is_due(self.step) else None
        if audit is not None:
            audit.before([matrix for matrix in current.matrices if matrix.info.is_matrix])
        while current.waves:
            waves, current.waves = current.waves, []
            answered = [pair for wave in waves for pair in zip(wave.algorithms, wave.pending.wait(), strict=True)]
            self._advance(current, answered)
        for name, gradient in current.gradients.items():
            gradient.copy_(current.delivered[name].view_as(gradient))
        if audit is not None:
            self.audits += audit.after(current.delivered)
            self.audit_seconds += audit.seconds
        self.step += 1
        for buffer, future in current.buckets:
            future.set_result(buffer)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this worker; it differs between workers, so each keeps its own."""
        return {
            "step": self.step,
            "seed": self._seed,
            "methods": {name: self._method(name) for name in self.plan},
            "memories": {
                name: {key: tensor.clone() for key, tensor in memory.items()} for name, memory in self._memories.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that this worker saved, also with a fresh DDP object.

        Raises:
            ValueError: it was saved under another plan, whose memories mean nothing to this one.
        """
        here = {name: self._method(name) for name in self.plan}
        odd = [name for name in here.keys() | state["methods"].keys() if here.get(name) != state["methods"].get(name)]
        if odd:
            name = min(odd)
            raise ValueError(
                f"the state was saved under another plan: {name} was {state['methods'].get(name, 'not in it')}, and is "
                f"{here.get(name, 'not in it')} here; register with the plan that it was saved under"
            )
        self.step = int(state["step"])
        self._seed = int(state["seed"])
        self._memories = {
            name: {key: tensor.clone() for key, tensor in memory.items()} for name, memory in state["memories"].items()
        }

    def _method(self, name: str) -> str:
        """What decides the meaning of a parameter's memory, in words."""
        assignment = self.plan[name]
        shape = "×".join(str(size) for size in assignment.info.shape)
        exact = "lossless" if assignment.lossless else "with error feedback"
        return f"{assignment.method} of {assignment.fit.columns} columns, {exact}, for {shape}"

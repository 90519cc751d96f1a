"""What compression keeps between steps, and how one step goes."""

import logging
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from compress.audit.auditor import Auditor
from compress.audit.row import AuditRow
from compress.audit.step import AuditStep
from compress.bounds.basis import Basis
from compress.capture import Capture
from compress.compressors.base import Matrix, Rounds
from compress.compressors.error_feedback import compute_dtype
from compress.compressors.flush import flush
from compress.exchange import AllReduceMean, Exchange
from compress.layers import named_parameters
from compress.plan import Plan
from compress.precision import PrecisionWatch
from compress.projections import Projections
from compress.step import LAUNCH_BYTES, Step
from compress.two_level import NodeExchange

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Buckets:
    """What has arrived in the step under way, and who works on it."""

    step: Step
    audit: AuditStep | None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    arrived: list[tuple[Tensor, torch.futures.Future[Tensor]]] = field(default_factory=list)
    bases: dict[str, Basis] | None = None


class CompressionState:
    """Carries out a plan, bucket by bucket.

    1. Each bucket's hook starts the algorithms whose gradients have arrived and launches their first
       requests, once there are enough of them, as one collective, which overlaps the rest of the backward pass.
    2. The last bucket's hook waits for them in bucket order and carries on with all algorithms of the
       step together, one collective a round. No collective is issued from a callback, and all are
       issued in bucket order, which is the same on every worker: so none can cross.
    3. The delivered gradients are written into the buckets and their futures completed.

    Everything kept between steps is keyed by parameter name, since DDP rebuilds its buckets.

    Attributes:
        step: steps done.
        exchange: counts bytes and time of gradients.
        auditor: audits, and counts bytes and time of its own.
    """

    def __init__(
        self,
        plan: Plan,
        model: DistributedDataParallel,
        exchange: Exchange,
        auditor: Auditor,
        seed: int,
        grad_scaler: GradScaler | None = None,
    ) -> None:
        self.step = 0
        self.exchange = exchange
        self.auditor = auditor
        self._seed = seed
        self._scaler = grad_scaler
        # Weakly: DDP holds this state, through its reducer, where no garbage collector sees a circle.
        self._wrapped = weakref.ref(model)
        self._memories: dict[str, dict[str, Tensor]] = {}
        self._names = {id(parameter): name for name, parameter in named_parameters(model).items()}
        self._current: _Buckets | None = None
        self._finite = torch.tensor(True)
        self._nonfinite_steps = torch.tensor(0)
        self._watch = PrecisionWatch(model, ())
        self._carry_out(plan)

    @property
    def plan(self) -> Plan:
        """What is carried out, and what is still certified of it."""
        return self._plan

    @property
    def _model(self) -> DistributedDataParallel:
        model = self._wrapped()
        if model is None:
            raise RuntimeError("the DistributedDataParallel object that this state served is gone; register anew")
        return model

    @property
    def bytes_sent(self) -> int:
        """Bytes this worker has handed to collectives for gradients, audits apart."""
        return self.exchange.bytes

    @property
    def bound_violations(self) -> int:
        """How often an audit found a gradient whose rank exceeds its bound."""
        return self.auditor.violations.count

    def audit_rows(self) -> list[AuditRow]:
        """One row for each matrix of the newest audited steps (`AuditSettings.keep`), on rank 0; elsewhere none."""
        return self.auditor.rows

    @property
    def finite(self) -> bool:
        """Whether the last step's gradients were finite on all workers; on GPUs reading it waits for them."""
        return bool(self._finite)

    @property
    def nonfinite_steps(self) -> int:
        """Steps in which a worker's gradient held NaN or infinity; on GPUs reading it waits for the last."""
        return int(self._nonfinite_steps)

    def change_plan(self, plan: Plan) -> None:
        """Carry out another plan from the next step on; called on all workers between two steps.

        Error feedback goes on: where a rank changes, the columns of the warm start that carried most survive;
        where a method is taken that keeps no residual, gradient and residual are sent dense once.

        Raises:
            ValueError: the plan was made for another world size or another network, or one of the two plans hands
                DDP's whole buckets to a method.
            RuntimeError: a step is under way.
        """
        if plan.whole_buckets or self._plan.whole_buckets:
            raise ValueError(
                "'torch_powersgd' takes DDP's whole buckets from register on; to change to or from it, wrap the model "
                "anew, register the other plan, and load this state's state_dict()"
            )
        if self._current is not None:
            raise RuntimeError("a step is under way; change the plan after backward() has returned")
        plan.check(self._model, self._plan.world_size, self._plan.local_size)
        self._agree_on_residuals()
        for name, assignment in plan.items():
            if assignment.method != self._plan[name].method:
                _keep_residual_only(self._memories.get(name, {}))
        self._carry_out(plan)

    def _agree_on_residuals(self) -> None:
        """Let all workers keep a residual where one does: whoever changes to another method sends it."""
        parameters = {name: p for name, p in named_parameters(self._model).items() if self._plan[name].info.is_matrix}
        if not parameters:
            return
        here = [float("residual" in self._memories.get(name, {})) for name in parameters]
        device = next(iter(parameters.values())).device
        (anywhere,) = self.auditor.exchange.run([AllReduceMean(torch.tensor(here, device=device))])
        for (name, parameter), kept in zip(parameters.items(), anywhere.tolist(), strict=True):
            memory = self._memories.setdefault(name, {})
            if kept and "residual" not in memory:
                dtype = compute_dtype(parameter.dtype)
                memory["residual"] = torch.zeros(self._plan[name].info.matrix, dtype=dtype, device=parameter.device)

    def _carry_out(self, plan: Plan) -> None:
        self._plan = plan
        self._watch.close()
        ranked = {name for name, assignment in plan.items() if assignment.lossless and assignment.method != "dense"}
        self._watch = PrecisionWatch(self._model, ranked, self._watch.lowered)
        # A captured layer's bias is delivered by its weight's algorithm, which waits for both.
        self._members = {
            name: (name, assignment.info.bias) if assignment.info.bias is not None else (name,)
            for name, assignment in plan.items()
            if assignment.compressor.captures and assignment.info.is_matrix
        }
        self._owner = {member: name for name, members in self._members.items() for member in members}
        self._projections = Projections(self._model, plan)
        self._capture = Capture(self._model, [(name, plan[name].info.bias) for name in self._members])

    def on_bucket(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Take one bucket of gradients; its future completes in the last bucket's call."""
        if self._current is None:
            self._current = self._begin_step()
        current, buffer = self._current, bucket.buffer()
        devices: list[int | str | torch.device] | None = [buffer.device] if buffer.device.type == "cuda" else None
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        if isinstance(self.exchange, NodeExchange):
            self.exchange.average_inside(buffer)
        current.arrived.append((buffer, future))
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            current.gradients[self._names[id(parameter)]] = gradient
        ready = self._ready(current, [self._names[id(parameter)] for parameter in bucket.parameters()])
        current.step.begin([self._begin(current, name) for name in ready])
        current.step.launch(at_least=LAUNCH_BYTES)
        if bucket.is_last():
            self._current = None
            self._finish(current)
        return future

    def _begin_step(self) -> _Buckets:
        self._note_precision()
        return _Buckets(Step(self.exchange), self.auditor.begin(self._plan, self.step))

    def _note_precision(self) -> None:
        """Take back what the plan certifies of matrices whose arithmetic turned out to be coarser."""
        self._watch.look()
        lowered = {name: why for name, why in self._watch.lowered.items() if self._plan[name].certified}
        if lowered:
            name, why = next(iter(lowered.items()))
            logger.warning(
                "under %s nothing is certified lossless: %d matrices, such as %s, keep what they do not deliver",
                why,
                len(lowered),
                name,
            )
            self._plan = self._plan.without_certificates(lowered)

    def _ready(self, current: _Buckets, arrived: list[str]) -> list[str]:
        """The parameters whose algorithm can start, now that these gradients have arrived too."""
        owners = dict.fromkeys(self._owner.get(name, name) for name in arrived)
        return [
            owner for owner in owners if all(name in current.gradients for name in self._members.get(owner, (owner,)))
        ]

    def _begin(self, current: _Buckets, name: str) -> tuple[Matrix, Rounds]:
        assignment = self._plan[name]
        if current.bases is None:  # weights are as they were in the forward pass until the step is over
            current.bases = self._projections()
        matrix = Matrix(
            info=assignment.info,
            gradients={member: current.gradients[member] for member in self._members.get(name, (name,))},
            fit=assignment.fit,
            step=self.step,
            seed=self._seed,
            memory=self._memories.setdefault(name, {}),
            captured=self._capture.take(name),
            basis=current.bases.get(name, Basis()),
            certified=assignment.lossless,
            scale=self._scale(),
        )
        if current.audit is not None and matrix.info.is_matrix:
            current.audit.note(matrix)
        if "residual" in matrix.memory and self._model.find_unused_parameters:
            current.step.doubt(matrix)
        compressor = assignment.compressor
        if "residual" in matrix.memory and not compressor.feeds_back(matrix):
            return matrix, flush(matrix, compressor)
        return matrix, compressor.rounds(matrix)

    def _scale(self) -> Tensor | None:
        """The scale of this step's loss, left on its device."""
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        scale: Tensor | None = self._scaler._get_scale_async()
        return scale

    def _finish(self, current: _Buckets) -> None:
        step, audit = current.step, current.audit
        step.launch()
        if audit is not None:
            self.auditor.exchange_noted(audit)
        step.finish()
        for name, gradient in current.gradients.items():
            delivered = step.delivered[name]
            if delivered.data_ptr() != gradient.data_ptr():
                gradient.copy_(delivered.view_as(gradient))
        if step.finite is not None:  # None in a step in which nothing was sent
            self._finite = step.finite
            self._nonfinite_steps = self._nonfinite_steps.to(step.finite.device) + ~step.finite
        self.step += 1
        for buffer, future in current.arrived:
            future.set_result(buffer)
        if self.auditor.end(audit, step.delivered, self.step):
            self._revise_plan()

    def _revise_plan(self) -> None:
        """Let an adaptive policy decide anew from what audits saw, which is alike on all workers."""
        planner = self._plan.planner
        if planner is None or not planner.adaptive:
            return
        plan = planner.plan(self.auditor.observed, self._plan.decided)
        old = self._plan
        if any((old[name].compressor, old[name].fit) != (new.compressor, new.fit) for name, new in plan.items()):
            self.change_plan(plan)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this worker; it differs between workers, so each keeps its own.

        Random factors come from `seed` and `step` alone, so these two are the state of the generator.
        """
        return {
            "step": self.step,
            "seed": self._seed,
            "nonfinite_steps": self.nonfinite_steps,
            "methods": {name: self._plan[name].method for name in self._plan},
            "memories": {
                name: {key: tensor.clone() for key, tensor in memory.items()} for name, memory in self._memories.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state that this worker saved, also with a fresh DDP object, or one from `reshard`.

        The plan need not be the one that it was saved under: what changes is carried on as by `change_plan`.

        Raises:
            ValueError: it was saved with another network.
        """
        _check_same_network(self._plan, state)
        devices = {name: parameter.device for name, parameter in named_parameters(self._model).items()}
        self.step = int(state["step"])
        self._seed = int(state["seed"])
        self._nonfinite_steps = torch.tensor(int(state["nonfinite_steps"]))
        self._memories = {
            name: {
                key: tensor.to(devices[name] if tensor.is_floating_point() else tensor.device, copy=True)
                for key, tensor in memory.items()
            }
            for name, memory in state["memories"].items()
        }
        for name, method in state["methods"].items():
            if method != self._plan[name].method:
                _keep_residual_only(self._memories.get(name, {}))


def _keep_residual_only(memory: dict[str, Tensor]) -> None:
    """Forget what only the method that kept it understands."""
    for key in memory.keys() - {"residual"}:
        del memory[key]


def _check_same_network(plan: Plan, state: Mapping[str, Any]) -> None:
    here, there = set(plan), set(state["methods"])
    if here != there:
        odd = sorted(here ^ there)
        raise ValueError(f"the state was saved with another network; only one of them has {', '.join(odd[:5])}")
    for name, memory in state["memories"].items():
        shape, expected = tuple(memory["residual"].shape) if "residual" in memory else None, plan[name].info.matrix
        if shape not in (None, expected):
            raise ValueError(f"the state was saved with another network: {name} was {shape}, and is {expected} here")

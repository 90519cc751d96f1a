"""One audited step: what was delivered beside the true mean gradient."""

import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from compress.audit.layers import Seen
from compress.audit.measured import Measured, Subject, measure, read
from compress.audit.row import AuditRow, ratio
from compress.audit.settings import AuditSettings
from compress.compressors.base import Matrix
from compress.compressors.error_feedback import add_scaled
from compress.exchange import AllGather, AllReduceMean, Exchange, is_finite
from compress.plan import Assignment, Plan

logger = logging.getLogger(__name__)

NOISE = 4.0
"""How many times ε·‖A‖·‖Δ‖ roundoff may be; beside float64 shadows of networks of many kinds it was 1.4 at most."""


class AuditStep:
    """One audited step: `note` what arrives, `exchange` it, then compare it `after` compression delivered.

    Matrices are shared out among the workers, each measures its own, and all learn all figures.
    """

    def __init__(self, exchange: Exchange, plan: Plan, settings: AuditSettings, step: int) -> None:
        self._exchange = exchange
        self._plan = plan
        self._settings = settings
        self._step = step
        self._true: dict[str, Tensor] = {}
        self._input: dict[str, Tensor] = {}
        self._memories: dict[str, dict[str, Tensor]] = {}
        self._floors: dict[str, float] = {}
        self._seen: Mapping[str, Seen] = {}
        self.seconds = 0.0

    def note(self, matrix: Matrix) -> None:
        """Take down a gradient, and what error feedback kept, before an algorithm writes over them.

        Args:
            matrix: of two axes or more; noted in the same order on every worker.
        """
        started = time.perf_counter()
        # Coarse types are averaged in float32, so that the truth is not rounded as what is delivered is.
        local = self._plan[matrix.info.name].compressor.local_gradient(matrix)
        gradient = _at_least_float32(local.detach().clone())
        self._true[matrix.info.name] = gradient
        self._memories[matrix.info.name] = matrix.memory
        residual = matrix.memory.get("residual")
        if residual is not None:
            self._input[matrix.info.name] = add_scaled(gradient.clone(), residual, matrix.scale)
        self.seconds += time.perf_counter() - started

    def exchange(self, seen: Mapping[str, Seen]) -> None:
        """Average what was noted over all workers.

        Args:
            seen: by this worker's layers.
        """
        started = time.perf_counter()
        self._seen = seen
        # Workers may differ in what they keep (see `Matrix.certified`), and must send alike.
        device = next((tensor.device for tensor in self._true.values()), None)  # NCCL takes no tensors of the host
        kept_here = [float(name in self._input) for name in self._true]
        local = torch.tensor(
            [kept_here, [self._noise(name) for name in self._true]], dtype=torch.float64, device=device
        )
        (anywhere,) = self._exchange.run([AllReduceMean(local)]) if self._true else (local,)
        keeps, floors = anywhere.tolist()
        self._floors = dict(zip(self._true, floors, strict=True))
        inputs = {
            name: self._input.get(name, true)
            for (name, true), kept in zip(self._true.items(), keeps, strict=True)
            if kept > 0
        }
        noted = [*self._true.values(), *inputs.values()]
        means = iter(self._exchange.run([AllReduceMean(tensor) for tensor in noted]))
        self._true = {name: next(means) for name in self._true}
        self._input = self._true | {name: next(means) for name in inputs}
        self.seconds += time.perf_counter() - started

    def _noise(self, name: str) -> float:
        """The size of roundoff in this worker's gradient; 0 where its layer was not seen."""
        epsilon = torch.finfo(self._plan[name].info.dtype).eps
        return NOISE * epsilon * self._seen[name].size if name in self._seen else 0.0

    def after(self, delivered: Mapping[str, Tensor]) -> list[AuditRow]:
        """Measure: one row for each matrix, alike on all workers; none where a gradient is not finite.

        Args:
            delivered: gradients by name, of which the audited matrices are read.
        """
        started = time.perf_counter()
        if all(bool(is_finite(tensor)) for tensor in self._input.values()):
            rows = self._measure(delivered)
        else:
            rows = []
            if self._exchange.rank == 0:
                logger.warning("step %d: a gradient is not finite, so the step is not audited", self._step)
        self.seconds += time.perf_counter() - started
        return rows

    def _measure(self, delivered: Mapping[str, Tensor]) -> list[AuditRow]:
        shares = share_out({name: true.shape for name, true in self._true.items()}, self._exchange.world_size)
        lengths = {name: Measured.numbers(true.shape) for name, true in self._true.items()}
        longest = max(sum(lengths[name] for name in share) for share in shares)
        if not longest:
            return []
        mine = [measure(self._subject(name, delivered[name])) for name in shares[self._exchange.rank]]
        own = torch.cat([*mine, torch.zeros(longest - sum(map(len, mine)), dtype=torch.float64)])
        device = next(iter(self._true.values())).device
        (gathered,) = self._exchange.run([AllGather(own.to(device))])
        rows: dict[str, AuditRow] = {}
        for share, numbers in zip(shares, gathered.cpu(), strict=True):
            parts = numbers[: sum(lengths[name] for name in share)].split([lengths[name] for name in share])
            rows |= {name: self._row(name, part) for name, part in zip(share, parts, strict=True)}
        return [rows[name] for name in self._plan if name in rows]

    def _subject(self, name: str, delivered: Tensor) -> Subject:
        assignment, true = self._plan[name], self._true[name]
        rows = self._seen[name].rows if name in self._seen else []
        sides = tuple(torch.cat([use[side] for use in rows]) for side in ("inputs", "adjoints")) if rows else None
        return Subject(
            gradient=true,
            input=self._input[name],
            delivered=delivered.reshape(true.shape),
            dtype=assignment.info.dtype,
            rank=self._communicated(name),
            bound=assignment.bound,
            noise_floor=self._floors[name],
            factors=sides,  # type: ignore[arg-type]
            full_spectrum=self._settings.full_spectrum,
        )

    def _communicated(self, name: str) -> int:
        """The rank of the plan, or that which the method chose in this step, alike on all workers."""
        chosen = self._memories[name].get("rank")
        return self._plan[name].rank if chosen is None else int(chosen)

    def _row(self, name: str, numbers: Tensor) -> AuditRow:
        assignment: Assignment = self._plan[name]
        found, spectrum, input_spectrum = read(numbers)
        (m, n), bound, rank = assignment.info.matrix, assignment.bound, int(found.measured_rank)
        lost = max(0.0, found.input_error_norm**2 - found.unavoidable_norm**2) ** 0.5
        return AuditRow(
            step=self._step,
            name=name,
            m=m,
            n=n,
            method=assignment.method,
            compressed=assignment.method != "dense",
            lossless=assignment.lossless,
            communicated_rank=self._communicated(name),
            bound=bound,
            measured_rank=rank,
            tolerance=found.tolerance,
            certified=bool(found.certified),
            noise_floor=self._floors[name],
            paper_rank=_known(found.paper_rank),
            stable_rank=found.stable_rank,
            effective_rank=None if found.effective_rank < 0 else found.effective_rank,
            energy99_rank=int(found.energy99_rank),
            violated=bound is not None and rank > bound,
            input_rank=_known(found.input_rank),
            adjoint_rank=_known(found.adjoint_rank),
            gradient_norm=found.gradient_norm,
            information_loss=ratio(found.error_norm, found.gradient_norm),
            compression_error=ratio(found.input_error_norm, found.input_norm),
            unavoidable_error=ratio(found.unavoidable_norm, found.input_norm),
            iteration_error=ratio(lost, found.input_norm),
            cosine=found.cosine,
            error_norm=found.error_norm,
            input_norm=found.input_norm,
            input_error_norm=found.input_error_norm,
            singular_values=spectrum,
            input_singular_values=input_spectrum,
        )


def share_out(shapes: Mapping[str, torch.Size], workers: int) -> list[list[str]]:
    """Which matrices each worker measures, so that all end at about one time: the costliest first, to who has least."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    loads = [0.0] * workers
    costs = {name: float(shape.numel()) * min(shape) for name, shape in shapes.items()}
    for name in sorted(costs, key=lambda name: -costs[name]):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += costs[name]
    return shares


def _known(rank: float) -> int | None:
    return None if rank < 0 else int(rank)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

"""The auditor: compares what was delivered with the true mean gradient, every so many steps."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from compress.audit.rank import measure_rank
from compress.compressors.base import Matrix
from compress.compressors.error_feedback import add_scaled
from compress.exchange import AllReduceMean, Exchange
from compress.plan import Plan

logger = logging.getLogger(__name__)


class AuditSettings(BaseModel):
    """How often to audit: in step 0 and in every `every`-th after it; 0 for never."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    every: Annotated[int, Field(ge=0)] = 50

    def is_due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


@dataclass(frozen=True)
class AuditRow:
    """One matrix in one audited step. G is the true mean gradient, Ĝ what was delivered.

    Attributes:
        compressed: whether a method other than dense sent it.
        communicated_rank: the rank of the plan.
        bound: the architecture's bound, None where unknown.
        measured_rank: singular values of G above `tolerance`.
        paper_rank, stable_rank, effective_rank, energy99_rank: see `RankMeasurement`.
        violated: measured_rank exceeds the bound.
        gradient_norm: ‖G‖_F.
        information_loss: ‖G − Ĝ‖_F / ‖G‖_F. Under error feedback it measures delay, not loss.
        compression_error: ‖M − Ĝ‖_F / ‖M‖_F, M the mean of gradient plus what error feedback kept.
        cosine: of the angle between G and Ĝ.
        error_norm: ‖G − Ĝ‖_F.
        input_norm: ‖M‖_F.
        input_error_norm: ‖M − Ĝ‖_F.
        singular_values: of G, descending.
    """

    step: int
    name: str
    m: int
    n: int
    method: str
    compressed: bool
    lossless: bool
    communicated_rank: int
    bound: int | None
    measured_rank: int
    tolerance: float
    paper_rank: int | None
    stable_rank: float
    effective_rank: float | None
    energy99_rank: int
    violated: bool
    gradient_norm: float
    information_loss: float
    compression_error: float
    cosine: float
    error_norm: float
    input_norm: float
    input_error_norm: float
    singular_values: list[float]


@dataclass(frozen=True)
class AuditedLoss:
    """Losses over all compressed matrices of one step together; 0 where nothing was compressed."""

    information_loss: float
    compression_error: float


def audited_loss(rows: Sequence[AuditRow]) -> AuditedLoss:
    """Combine the rows of one step: norms over all compressed matrices, as if they were one."""
    compressed = [row for row in rows if row.compressed]

    def together(norms: Sequence[float]) -> float:
        return float(torch.tensor(norms, dtype=torch.float64).norm()) if norms else 0.0

    return AuditedLoss(
        information_loss=_ratio(
            together([row.error_norm for row in compressed]), together([row.gradient_norm for row in compressed])
        ),
        compression_error=_ratio(
            together([row.input_error_norm for row in compressed]), together([row.input_norm for row in compressed])
        ),
    )


class AuditStep:
    """One audited step: `note` what arrives, `exchange` it, then compare it `after` compression delivered.

    Rank 0 measures; the other workers only take part in the exchange.
    """

    def __init__(self, exchange: Exchange, plan: Plan, step: int) -> None:
        self._exchange = exchange
        self._plan = plan
        self._step = step
        self._true: dict[str, Tensor] = {}
        self._input: dict[str, Tensor] = {}
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
        residual = matrix.memory.get("residual")
        if residual is not None:
            self._input[matrix.info.name] = add_scaled(gradient.clone(), residual, matrix.scale)
        self.seconds += time.perf_counter() - started

    def exchange(self) -> None:
        """Average what was noted over all workers."""
        started = time.perf_counter()
        # Workers may differ in what they keep (see `Matrix.certified`), and must send alike.
        device = next((tensor.device for tensor in self._true.values()), None)  # NCCL takes no tensors of the host
        keeps = torch.tensor([float(name in self._input) for name in self._true], device=device)
        (anywhere,) = self._exchange.run([AllReduceMean(keeps)]) if len(keeps) else (keeps,)
        inputs = {
            name: self._input.get(name, true)
            for (name, true), kept in zip(self._true.items(), anywhere.tolist(), strict=True)
            if kept > 0
        }
        noted = [*self._true.values(), *inputs.values()]
        means = iter(self._exchange.run([AllReduceMean(tensor) for tensor in noted]))
        self._true = {name: next(means) for name in self._true}
        self._input = self._true | {name: next(means) for name in inputs}
        self.seconds += time.perf_counter() - started

    def after(self, delivered: Mapping[str, Tensor]) -> list[AuditRow]:
        """Measure, on rank 0: one row for each matrix. Elsewhere, and where a gradient is not finite: none.

        Args:
            delivered: gradients by name, of which the audited matrices are read.
        """
        started = time.perf_counter()
        rows = []
        if self._exchange.rank == 0:
            finite = all(bool(torch.isfinite(tensor).all()) for tensor in self._input.values())
            if finite:
                rows = [self._measure(name, delivered[name].reshape(true.shape)) for name, true in self._true.items()]
            else:
                logger.warning("step %d: a gradient is not finite, so the step is not audited", self._step)
        self.seconds += time.perf_counter() - started
        return rows

    def _measure(self, name: str, delivered: Tensor) -> AuditRow:
        assignment = self._plan[name]
        G, M, D = (tensor.to(torch.float64) for tensor in (self._true[name], self._input[name], delivered))
        rank = measure_rank(self._true[name], full_spectrum=True, dtype=assignment.info.dtype)
        error, input_error = float((G - D).norm()), float((M - D).norm())
        m, n = assignment.info.matrix
        return AuditRow(
            step=self._step,
            name=name,
            m=m,
            n=n,
            method=assignment.method,
            compressed=assignment.method != "dense",
            lossless=assignment.lossless,
            communicated_rank=assignment.rank,
            bound=assignment.bound,
            measured_rank=rank.numerical,
            tolerance=rank.tolerance,
            paper_rank=rank.paper,
            stable_rank=rank.stable,
            effective_rank=rank.effective,
            energy99_rank=rank.energy99,
            violated=assignment.bound is not None and rank.numerical > assignment.bound,
            gradient_norm=float(G.norm()),
            information_loss=_ratio(error, float(G.norm())),
            compression_error=_ratio(input_error, float(M.norm())),
            cosine=_ratio(float((G * D).sum()), float(G.norm() * D.norm())),
            error_norm=error,
            input_norm=float(M.norm()),
            input_error_norm=input_error,
            singular_values=rank.singular_values.tolist(),
        )


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0

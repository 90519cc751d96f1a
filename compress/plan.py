"""The plan: for each parameter the method, the rank, the reason, and the bytes it will cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from compress.compressors import Compressor, Dense
from compress.compressors.base import Fit, Sizing, Work
from compress.exchange import ring_bytes
from compress.layers import ParameterInfo, describe
from compress.matrix import look_up
from compress.policies import Observation


class Reviser(Protocol):
    """Makes plans, and makes them anew from what audits saw."""

    @property
    def adaptive(self) -> bool:
        """Whether another plan may come of it."""

    def plan(
        self, observed: Mapping[str, Sequence[Observation]] | None = None, ranks: Mapping[str, int] | None = None
    ) -> "Plan":
        """Plan, from what audits saw of each matrix so far and the ranks that were decided last."""


@dataclass(frozen=True)
class Assignment:
    """What the plan decided for one parameter.

    Attributes:
        info: the parameter.
        compressor: the method, with its settings.
        fit: rank, payloads and whether the method is certified lossless here.
        reason: how rank and method came about, in words.
        bound: the architecture's bound on the rank, None where unknown.
        decided: the policy's rank, None where it sets none or was not asked.
        work: the method's arithmetic in a step.
        certified: whether the arithmetic is that of the gradient's type; False once autocast, TF32 or the like
            was seen, under which nothing is lossless for certain.
    """

    info: ParameterInfo
    compressor: Compressor
    fit: Fit
    reason: str
    bound: int | None
    decided: int | None = None
    certified: bool = True
    work: Work = field(default_factory=Work)

    @property
    def method(self) -> str:
        return self.compressor.kind

    @property
    def rank(self) -> int:
        """The highest rank that the delivered gradient can have; 1 for a vector."""
        return self.fit.rank

    @property
    def lossless(self) -> bool:
        """Whether what is delivered is certain to equal the true mean gradient up to roundoff."""
        return self.fit.lossless and self.certified

    @property
    def bytes(self) -> int:
        """Bytes that one worker hands to collectives in a step."""
        return sum(payload.bytes(self.info.dtype) for payload in self.fit.payloads)

    def wire_bytes(self, world_size: int) -> float:
        """Bytes that one worker must send in a step on a ring."""
        return sum(
            ring_bytes(payload.collective, payload.bytes(self.info.dtype), world_size) for payload in self.fit.payloads
        )


@dataclass(frozen=True, eq=False)
class Plan(Mapping[str, Assignment]):
    """A read-only mapping from parameter name to `Assignment`, in the order of `named_parameters()`.

    Attributes:
        assignments: by name.
        world_size: workers whose gradients are averaged.
        local_size: workers of a node, which average densely before nodes exchange; 1 where all exchange.
        planner: who made it and makes it anew after audits, None for a plan that stays.
    """

    assignments: Mapping[str, Assignment]
    world_size: int
    local_size: int = 1
    planner: Reviser | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Assignment:
        return self.assignments[look_up(self.assignments, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.assignments)

    def __len__(self) -> int:
        return len(self.assignments)

    @property
    def matrices(self) -> list[Assignment]:
        """The assignments of parameters of two or more axes."""
        return [assignment for assignment in self.values() if assignment.info.is_matrix]

    @property
    def largest_rank(self) -> int:
        """The largest rank among compressed matrices; where none is, the largest that any matrix can have."""
        compressed = [assignment.rank for assignment in self.matrices if assignment.method != "dense"]
        return max(compressed or [assignment.rank for assignment in self.matrices], default=1)

    @property
    def decided(self) -> dict[str, int]:
        """The policy's ranks by name, where it set one."""
        return {name: assignment.decided for name, assignment in self.items() if assignment.decided is not None}

    @property
    def whole_buckets(self) -> bool:
        """Whether a method takes DDP's whole buckets."""
        return any(assignment.compressor.whole_buckets for assignment in self.values())

    @property
    def bytes(self) -> int:
        """Bytes that one worker hands to collectives in a step."""
        return sum(assignment.bytes for assignment in self.values())

    @property
    def wire_bytes(self) -> float:
        """Bytes that one worker (of a node, its first) must send in a step on a ring."""
        return sum(assignment.wire_bytes(self.peers) for assignment in self.values())

    @property
    def peers(self) -> int:
        """How many take part in the compressed exchange: workers, or nodes."""
        return self.world_size // self.local_size

    @property
    def dense(self) -> "Plan":
        """The same parameters, all sent dense."""
        return Plan(
            {
                name: replace(
                    sent_dense(assignment.info),
                    bound=assignment.bound,
                    decided=assignment.decided,
                    certified=assignment.certified,
                )
                for name, assignment in self.items()
            },
            self.world_size,
            self.local_size,
        )

    def without_certificates(self, lowered: Mapping[str, str]) -> "Plan":
        """The same plan, with nothing certified of the parameters named, each with its reason."""
        changed = {
            name: replace(self[name], certified=False, reason=f"{self[name].reason}; not certified under {why}")
            for name, why in lowered.items()
        }
        return replace(self, assignments={**self.assignments, **changed})

    def check(self, model: nn.Module, world_size: int, local_size: int = 1) -> None:
        """Refuse a network, or a group of workers, that the plan was not made for.

        Raises:
            ValueError: naming what differs.
        """
        if (self.world_size, self.local_size) != (world_size, local_size):
            raise ValueError(
                f"the plan was made for world_size={self.world_size}, local_size={self.local_size}, but {world_size} "
                f"workers, {local_size} to a node, average their gradients here; call make_plan(..., "
                f"world_size={world_size}, local_size={local_size})"
            )
        here = {info.name: info.shape for info in describe(model)}
        planned = {name: assignment.info.shape for name, assignment in self.items()}
        if here != planned:
            odd = sorted(name for name in here.keys() | planned.keys() if here.get(name) != planned.get(name))
            raise ValueError(f"the plan was made for another network; these parameters differ: {', '.join(odd[:5])}")

    def rows(self) -> list[dict[str, Any]]:
        """One row of plain values for each parameter, for tables."""
        return [
            {
                "name": name,
                "shape": " × ".join(str(size) for size in assignment.info.shape),
                "method": assignment.method,
                "rank": assignment.rank,
                "bound": assignment.bound,
                "lossless": assignment.lossless,
                "bytes": assignment.bytes,
                "wire_bytes": assignment.wire_bytes(self.peers),
                "reason": assignment.reason,
            }
            for name, assignment in self.items()
        ]


def fit_dense(info: ParameterInfo) -> Fit:
    """What dense sends for a parameter."""
    return sent_dense(info).fit


def sent_dense(info: ParameterInfo, reason: str = "sent as it is") -> Assignment:
    """A parameter without compression."""
    dense, sizing = Dense(), Sizing(info, None, None, None)
    fit = dense.fit(sizing)
    return Assignment(info, dense, fit, reason, None, work=dense.work(sizing, fit))

"""The plan: for each parameter the method, the rank, the reason, and the bytes it will cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compress.bounds import Bounds
from compress.compressors import Compressor, Dense, make_compressor
from compress.compressors.base import Fit, Sizing, Unfit
from compress.exchange import ring_bytes
from compress.layers import ParameterInfo, describe
from compress.matrix import look_up
from compress.policies import Decision, NonePolicy, Policy, make_policy

CompressorSpec = str | Mapping[str, Any] | Compressor
PolicySpec = str | Mapping[str, Any] | Policy


@dataclass(frozen=True)
class Assignment:
    """What the plan decided for one parameter.

    Attributes:
        info: the parameter.
        compressor: the method, with its settings.
        fit: rank, payloads and whether the method is certified lossless here.
        reason: how rank and method came about, in words.
        bound: the architecture's bound on the rank, None where unknown.
    """

    info: ParameterInfo
    compressor: Compressor
    fit: Fit
    reason: str
    bound: int | None

    @property
    def method(self) -> str:
        return self.compressor.kind

    @property
    def rank(self) -> int:
        """The highest rank that the delivered gradient can have; 1 for a vector."""
        return self.fit.rank

    @property
    def lossless(self) -> bool:
        return self.fit.lossless

    @property
    def bytes(self) -> int:
        """Bytes that one worker hands to collectives in a step."""
        return self.info.dtype.itemsize * sum(payload.numbers for payload in self.fit.payloads)

    def wire_bytes(self, world_size: int) -> float:
        """Bytes that one worker must send in a step on a ring."""
        return self.info.dtype.itemsize * sum(
            ring_bytes(payload.collective, payload.numbers, world_size) for payload in self.fit.payloads
        )


@dataclass(frozen=True, eq=False)
class Plan(Mapping[str, Assignment]):
    """A read-only mapping from parameter name to `Assignment`, in the order of `named_parameters()`."""

    assignments: Mapping[str, Assignment]
    world_size: int

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
    def bytes(self) -> int:
        """Bytes that one worker hands to collectives in a step."""
        return sum(assignment.bytes for assignment in self.values())

    @property
    def wire_bytes(self) -> float:
        """Bytes that one worker must send in a step on a ring."""
        return sum(assignment.wire_bytes(self.world_size) for assignment in self.values())

    @property
    def dense(self) -> "Plan":
        """The same parameters, all sent dense."""
        dense = Dense()
        return Plan(
            {
                name: replace(assignment, compressor=dense, fit=_fit_dense(assignment.info), reason="sent as it is")
                for name, assignment in self.items()
            },
            self.world_size,
        )

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
                "wire_bytes": assignment.wire_bytes(self.world_size),
                "reason": assignment.reason,
            }
            for name, assignment in self.items()
        ]


def make_plan(
    model: nn.Module,
    compressor: CompressorSpec | Sequence[CompressorSpec],
    policy: PolicySpec = "none",
    *,
    bounds: Bounds | None = None,
    world_size: int,
) -> Plan:
    """Decide how each gradient is sent.

    Among the candidates that serve a matrix, the one with the fewest bytes on the wire is taken; dense
    is always among them, so that no matrix costs more than without compression.

    Args:
        model: the network, wrapped in DistributedDataParallel or not; only shapes and types are read.
        compressor: a compressor or several candidates: names, mappings or objects.
        policy: decides the ranks of methods that have one.
        bounds: from `rank_bounds`; without them nothing low-rank is certified lossless.
        world_size: workers whose gradients are averaged.

    Raises:
        ValueError: an unknown name or field; a ranked method without a policy that sets ranks; bounds
            made for another world size, or for another network.
    """
    candidates = _candidates(compressor)
    policy = make_policy(policy)
    if isinstance(policy, NonePolicy):
        ranked = [candidate.kind for candidate in candidates if candidate.ranked]
        if ranked:
            raise ValueError(
                f"compressor {ranked[0]!r} needs a rank; give policy 'bound' or {{'kind': 'fixed', 'rank': 4}}"
            )
    infos = describe(model)
    matrices = [info for info in infos if info.is_matrix]
    if bounds is not None:
        bounds.check_world_size(world_size)
        _check_same_network(matrices, bounds)
    decisions = policy.decide(matrices, bounds)

    assignments = {info.name: _assign(info, candidates, decisions.get(info.name), bounds, world_size) for info in infos}
    for info in matrices:  # biases that travel with their layer's weight cost nothing of their own
        if info.bias is not None and assignments[info.name].compressor.captures:
            bias = assignments[info.bias]
            assignments[info.bias] = replace(
                bias,
                compressor=assignments[info.name].compressor,
                fit=Fit((), rank=1, lossless=True),
                reason=f"comes with {info.name}",
            )
    return Plan(assignments, world_size)


def _candidates(compressor: CompressorSpec | Sequence[CompressorSpec]) -> list[Compressor]:
    if isinstance(compressor, (str, Mapping, Compressor)):
        return [make_compressor(compressor)]
    candidates = [make_compressor(item) for item in compressor]
    if not candidates:
        raise ValueError("compressor is an empty list; give one candidate or more")
    return candidates


def _check_same_network(matrices: Sequence[ParameterInfo], bounds: Bounds) -> None:
    for matrix in matrices:
        if matrix.name not in bounds or bounds[matrix.name].shape != matrix.matrix:
            found = f"shape {bounds[matrix.name].shape}" if matrix.name in bounds else "no entry"
            raise ValueError(
                f"the bounds were made for another network: {matrix.name} is {matrix.matrix}, the bounds have "
                f"{found}; call rank_bounds on this model"
            )


def _fit_dense(info: ParameterInfo) -> Fit:
    return Dense().fit(Sizing(info, None, None, None))


def _assign(
    info: ParameterInfo,
    candidates: Sequence[Compressor],
    decision: Decision | None,
    bounds: Bounds | None,
    world_size: int,
) -> Assignment:
    dense = Assignment(info, Dense(), _fit_dense(info), "a vector, sent as it is", None)
    if not info.is_matrix or decision is None:
        return dense
    bound = bounds[info.name] if bounds is not None else None
    sizing = Sizing(info, decision.rank, bound.rank if bound else None, bound.rows if bound else None)
    dense = replace(dense, bound=sizing.bound, reason="sent as it is")
    options, refusals = [], []
    for candidate in candidates:
        fit = candidate.fit(sizing)
        if isinstance(fit, Unfit):
            refusals.append(f"{candidate.kind}: {fit.reason}")
        else:
            options.append(Assignment(info, candidate, fit, fit.reason or decision.reason, sizing.bound))

    def cost(assignment: Assignment) -> tuple[float, int]:
        return assignment.wire_bytes(world_size), assignment.bytes

    best = min(options, key=cost, default=None)
    if best is None:
        return replace(dense, reason=f"sent as it is: {'; '.join(refusals)}")
    if cost(dense) < cost(best):
        return replace(dense, reason=f"sent as it is: {best.method} would cost more ({best.reason})")
    return best

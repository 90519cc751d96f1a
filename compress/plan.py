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
from compress.policies import Decision, FixedPolicy, NonePolicy, Policy, make_policy

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
        certified: whether the arithmetic is that of the gradient's type; False once autocast, TF32 or the like
            was seen, under which nothing is lossless for certain.
    """

    info: ParameterInfo
    compressor: Compressor
    fit: Fit
    reason: str
    bound: int | None
    certified: bool = True

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
    """

    assignments: Mapping[str, Assignment]
    world_size: int
    local_size: int = 1

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
        dense = Dense()
        return Plan(
            {
                name: replace(assignment, compressor=dense, fit=_fit_dense(assignment.info), reason="sent as it is")
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


def make_plan(
    model: nn.Module,
    compressor: CompressorSpec | Sequence[CompressorSpec],
    policy: PolicySpec = "none",
    *,
    bounds: Bounds | None = None,
    world_size: int,
    local_size: int = 1,
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
        local_size: workers of a node, for a two-level exchange; bytes are then those between nodes.

    Raises:
        ValueError: an unknown name or field; a ranked method without a policy that sets ranks; bounds
            made for another world size, or for another network; nodes that do not share the workers evenly,
            or a method that cannot serve two levels.
    """
    candidates = _candidates(compressor)
    policy = make_policy(policy)
    if world_size % local_size:
        raise ValueError(f"{world_size} workers cannot be {local_size} to a node; give a divisor of {world_size}")
    capturing = [candidate.kind for candidate in candidates if candidate.captures]
    if local_size > 1 and capturing:
        raise ValueError(
            f"compressor {capturing[0]!r} sends each worker's own rows, and local_group averages them away before; "
            "leave out local_group, or take 'powersgd' or 'subspace'"
        )
    if isinstance(policy, NonePolicy):
        ranked = [candidate.kind for candidate in candidates if candidate.ranked]
        if ranked:
            raise ValueError(
                f"compressor {ranked[0]!r} needs a rank; give policy 'bound' or {{'kind': 'fixed', 'rank': 4}}"
            )
    for candidate in candidates:
        if candidate.whole_buckets:
            _check_alone(candidate, candidates, policy, local_size)
    infos = describe(model)
    matrices = [info for info in infos if info.is_matrix]
    if bounds is not None:
        bounds.check_world_size(world_size)
        _check_same_network(matrices, bounds)
    decisions = policy.decide(matrices, bounds)

    peers = world_size // local_size
    assignments = {info.name: _assign(info, candidates, decisions.get(info.name), bounds, peers) for info in infos}
    for info in matrices:  # biases that travel with their layer's weight cost nothing of their own
        if info.bias is not None and assignments[info.name].compressor.captures:
            bias = assignments[info.bias]
            assignments[info.bias] = replace(
                bias,
                compressor=assignments[info.name].compressor,
                fit=Fit((), rank=1, lossless=True),
                reason=f"comes with {info.name}",
            )
    return Plan(assignments, world_size, local_size)


def _candidates(compressor: CompressorSpec | Sequence[CompressorSpec]) -> list[Compressor]:
    if isinstance(compressor, (str, Mapping, Compressor)):
        return [make_compressor(compressor)]
    candidates = [make_compressor(item) for item in compressor]
    if not candidates:
        raise ValueError("compressor is an empty list; give one candidate or more")
    return candidates


def _check_alone(method: Compressor, candidates: Sequence[Compressor], policy: Policy, local_size: int) -> None:
    """Refuse what a method that takes whole buckets cannot be combined with."""
    others = sorted({candidate.kind for candidate in candidates if candidate is not method})
    if len(candidates) > 1:
        raise ValueError(
            f"compressor {method.kind!r} takes whole buckets, so that no other can serve beside it, and the candidates "
            f"are {', '.join([method.kind, *others])}; give it alone"
        )
    if not isinstance(policy, FixedPolicy):
        raise ValueError(
            f"compressor {method.kind!r} has one rank for all matrices, which policy {policy.kind!r} does not give; "
            "take {'kind': 'fixed', 'rank': 4}"
        )
    if local_size > 1:
        raise ValueError(f"compressor {method.kind!r} knows no nodes; leave out local_group, or take 'powersgd'")


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
    peers: int,
) -> Assignment:
    dense = Assignment(info, Dense(), _fit_dense(info), "a vector, sent as it is", None)
    if 0 in info.shape:
        return replace(dense, reason="has no entries")
    if info.is_matrix and decision is not None:
        bound = bounds[info.name] if bounds is not None else None
        rank, rows, bases = (bound.rank, bound.rows, bound.bases) if bound else (None, None, None)
        sizing = Sizing(info, decision.rank, rank, rows, bases, peers)
        dense = replace(dense, bound=sizing.bound, reason="sent as it is")
        if rank == 0:  # as of a branch that another batch may take
            return replace(dense, reason="sent as it is: the loss that was traced gives it no gradient")
    else:
        candidates = [candidate for candidate in candidates if candidate.vectors]
        decision, sizing = Decision(None, "a vector"), Sizing(info, None, None, None)
        if not candidates:
            return dense
    options, refusals = [], []
    for candidate in candidates:
        fit = candidate.fit(sizing)
        if isinstance(fit, Unfit):
            refusals.append(f"{candidate.kind}: {fit.reason}")
        else:
            options.append(Assignment(info, candidate, fit, fit.reason or decision.reason, sizing.bound))

    def cost(assignment: Assignment) -> tuple[float, int]:
        return assignment.wire_bytes(peers), assignment.bytes

    best = min(options, key=cost, default=None)
    if best is None:
        return replace(dense, reason=f"sent as it is: {'; '.join(refusals)}")
    if cost(dense) < cost(best):
        return replace(dense, reason=f"sent as it is: {best.method} would cost more ({best.reason})")
    return best

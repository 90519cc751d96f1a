"""The planner: asks the policy for ranks, and takes for each parameter the cheapest method that serves it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compress.bounds import Bounds
from compress.compressors import Compressor, Dense, make_compressor
from compress.compressors.base import Fit, Sizing, Unfit
from compress.layers import ParameterInfo, describe
from compress.plan import Assignment, Plan, fit_dense
from compress.policies import Decision, FixedPolicy, NonePolicy, Observation, Policy, Situation, make_policy

CompressorSpec = str | Mapping[str, Any] | Compressor
PolicySpec = str | Mapping[str, Any] | Policy


@dataclass(frozen=True, eq=False)
class Planner:
    """What a plan is made from; the same everywhere, so that all workers plan alike.

    Attributes:
        infos: all parameters.
        candidates: methods to choose from, beside dense.
        policy: decides the ranks of methods that have one.
        bounds: None where unknown.
        world_size: workers whose gradients are averaged.
        local_size: workers of a node.
    """

    infos: Sequence[ParameterInfo]
    candidates: Sequence[Compressor]
    policy: Policy
    bounds: Bounds | None
    world_size: int
    local_size: int = 1

    @property
    def adaptive(self) -> bool:
        return self.policy.adaptive

    @property
    def peers(self) -> int:
        """How many take part in the compressed exchange: workers, or nodes."""
        return self.world_size // self.local_size

    def plan(
        self, observed: Mapping[str, Sequence[Observation]] | None = None, ranks: Mapping[str, int] | None = None
    ) -> Plan:
        """Plan, from what audits saw of each matrix so far and the ranks that were decided last.

        Raises:
            ValueError: what the policy refuses.
        """
        matrices = [info for info in self.infos if info.is_matrix]
        situation = Situation(matrices, self.bounds, observed or {}, ranks or {}, self._bytes_at)
        decisions = self.policy.decide(situation)
        self._check_tolerances(decisions)
        assignments = {info.name: self._assign(info, decisions.get(info.name)) for info in self.infos}
        for info in matrices:  # biases that travel with their layer's weight cost nothing of their own
            if info.bias is not None and assignments[info.name].compressor.captures:
                assignments[info.bias] = replace(
                    assignments[info.bias],
                    compressor=assignments[info.name].compressor,
                    fit=Fit((), rank=1, lossless=True),
                    reason=f"comes with {info.name}",
                )
        return Plan(assignments, self.world_size, self.local_size, self)

    def _check_tolerances(self, decisions: Mapping[str, Decision]) -> None:
        """Refuse a tolerance that none of the candidates can keep, lest all be sent dense unasked."""
        given = any(decision.tolerance is not None for decision in decisions.values())
        if given and not any(candidate.tolerant for candidate in self.candidates):
            kinds = ", ".join(candidate.kind for candidate in self.candidates)
            raise ValueError(
                f"policy {self.policy.kind!r} gives a tolerance in place of a rank, which of {kinds} none takes; "
                "take compressor 'svd'"
            )

    def _bytes_at(self, info: ParameterInfo, rank: int) -> float:
        return self._assign(info, Decision(rank, "asked for")).bytes

    def _assign(self, info: ParameterInfo, decision: Decision | None) -> Assignment:
        candidates = self.candidates
        dense = Assignment(info, Dense(), fit_dense(info), "a vector, sent as it is", None)
        if 0 in info.shape:
            return replace(dense, reason="has no entries")
        if info.is_matrix and decision is not None:
            bound = self.bounds[info.name] if self.bounds is not None else None
            rank, rows, bases = (bound.rank, bound.rows, bound.bases) if bound else (None, None, None)
            sizing = Sizing(info, decision.rank, rank, rows, bases, self.peers, decision.tolerance)
            dense = replace(dense, bound=sizing.bound, decided=sizing.rank, reason="sent as it is")
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
                options.append(
                    Assignment(info, candidate, fit, fit.reason or decision.reason, sizing.bound, sizing.rank)
                )

        def cost(assignment: Assignment) -> tuple[float, int]:
            return assignment.wire_bytes(self.peers), assignment.bytes

        best = min(options, key=cost, default=None)
        if best is None:
            return replace(dense, reason=f"sent as it is: {'; '.join(refusals)}")
        if cost(dense) < cost(best):
            return replace(dense, reason=f"sent as it is: {best.method} would cost more ({best.reason})")
        return best


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
    if bounds is not None:
        bounds.check_world_size(world_size)
        _check_same_network([info for info in infos if info.is_matrix], bounds)
    return Planner(infos, candidates, policy, bounds, world_size, local_size).plan()


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

"""The planner: asks the policy for ranks, and takes for each parameter the cheapest method that serves it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from torch import nn

from compress.bounds import Bounds
from compress.candidates import CompressorSpec, check_candidates, expand, is_auto, read_candidates
from compress.compressors import Compressor
from compress.compressors.base import Fit, Sizing, Unfit, Work
from compress.cost import Network, Rates, predict
from compress.cost.predict import cost_of
from compress.layers import ParameterInfo, describe
from compress.plan import Assignment, Plan, sent_dense
from compress.policies import Decision, Observation, Policy, Situation, make_policy

PolicySpec = str | Mapping[str, Any] | Policy


@dataclass(frozen=True)
class _Ways:
    """How one parameter can be sent: dense, or by candidates that serve it; and why others do not."""

    dense: Assignment
    options: Sequence[Assignment] = ()
    refusals: Sequence[tuple[Compressor, str]] = ()


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
        lossless: whether matrices take lossless methods alone, save where the policy's rank is below the bound.
        network: candidates are chosen by seconds on it; None to choose by bytes on the wire.
        rates: of the workers' machines, for those seconds.
    """

    infos: Sequence[ParameterInfo]
    candidates: Sequence[Compressor]
    policy: Policy
    bounds: Bounds | None
    world_size: int
    local_size: int = 1
    lossless: bool = False
    network: Network | None = None
    rates: Rates = field(default_factory=Rates)

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
        ways = {info.name: self._ways(info, decisions.get(info.name)) for info in self.infos}
        network = self.network
        if network is None:
            return self._planned(ways, self.candidates)
        # Latency is a step's and no matrix's: one matrix fewer saves none, one kind of collective fewer does.
        found = [self._planned(ways, chosen) for chosen in _subsets(self.candidates)]
        return min(found, key=lambda plan: predict(plan, network, self.rates).seconds)

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
        return self._cheapest(self._ways(info, Decision(rank, "asked for")), self.candidates).bytes

    def _ways(self, info: ParameterInfo, decision: Decision | None) -> _Ways:
        """How a parameter can be sent, if a matrix at the rank that was decided."""
        if 0 in info.shape:
            return _Ways(sent_dense(info, "has no entries"))
        if not info.is_matrix or decision is None:
            sizing, dense = Sizing(info, None, None, None), sent_dense(info, "a vector, sent as it is")
            candidates = [candidate for candidate in self.candidates if candidate.vectors]
        else:
            bound = self.bounds[info.name] if self.bounds is not None else None
            rank, rows, bases = (bound.rank, bound.rows, bound.bases) if bound else (None, None, None)
            sizing = Sizing(info, decision.rank, rank, rows, bases, self.peers, decision.tolerance)
            dense = replace(sent_dense(info), bound=sizing.bound, decided=sizing.rank)
            if rank == 0:  # as of a branch that another batch may take
                return _Ways(replace(dense, reason="sent as it is: the loss that was traced gives it no gradient"))
            candidates = list(self.candidates)
        only_lossless = self.lossless and (sizing.rank is None or sizing.rank >= (sizing.bound or sizing.rank + 1))
        options, refusals = [], []
        for candidate in candidates:
            fit = candidate.fit(sizing)
            if isinstance(fit, Unfit):
                refusals.append((candidate, fit.reason))
            elif only_lossless and not fit.lossless:
                refusals.append((candidate, "not lossless here"))
            else:
                reason = fit.reason or (decision.reason if decision is not None else "a vector")
                work = candidate.work(sizing, fit)
                options.append(Assignment(info, candidate, fit, reason, sizing.bound, sizing.rank, work=work))
        return _Ways(dense, options, refusals)

    def _planned(self, ways: Mapping[str, _Ways], candidates: Sequence[Compressor]) -> Plan:
        """The plan in which each parameter takes the cheapest of some candidates."""
        vectors = {info.name: self._cheapest(ways[info.name], candidates) for info in self.infos if not info.is_matrix}
        assignments = {
            info.name: self._cheapest(ways[info.name], candidates, vectors.get(info.bias or ""))
            if info.is_matrix
            else vectors[info.name]
            for info in self.infos
        }
        for info in self.infos:  # biases that travel with their layer's weight cost nothing of their own
            if info.is_matrix and info.bias is not None and assignments[info.name].compressor.captures:
                assignments[info.bias] = replace(
                    assignments[info.bias],
                    compressor=assignments[info.name].compressor,
                    fit=Fit((), rank=1, lossless=True),
                    reason=f"comes with {info.name}",
                    work=Work(),
                )
        return Plan(assignments, self.world_size, self.local_size, self)

    def _cheapest(self, ways: _Ways, candidates: Sequence[Compressor], bias: Assignment | None = None) -> Assignment:
        """The cheapest of some ways; `bias` is how that of the layer would be sent by itself."""
        dense = ways.dense
        if not (ways.options or ways.refusals):
            return dense

        def cost(assignment: Assignment) -> tuple[float, float]:
            """Of what travels: the bias too, where it does not come with its layer's weight."""
            sent = [assignment, bias] if bias is not None and not assignment.compressor.captures else [assignment]
            if self.network is not None:
                found = [cost_of(one, self.peers, self.network, self.rates, self.local_size) for one in sent]
                return sum(one.seconds for one in found), 0
            return sum(one.wire_bytes(self.peers) for one in sent), sum(one.bytes for one in sent)

        best = min((way for way in ways.options if way.compressor in candidates), key=cost, default=None)
        if best is None:
            refusals = [f"{candidate.kind}: {why}" for candidate, why in ways.refusals if candidate in candidates]
            return replace(dense, reason=f"sent as it is: {'; '.join(refusals) or 'so a step takes least time'}")
        if cost(dense) < cost(best):
            more = "cost more" if self.network is None else "take longer"
            return replace(dense, reason=f"sent as it is: {best.method} would {more} ({best.reason})")
        return best


def make_plan(
    model: nn.Module,
    compressor: CompressorSpec | Sequence[CompressorSpec],
    policy: PolicySpec = "none",
    *,
    bounds: Bounds | None = None,
    world_size: int,
    local_size: int = 1,
    network: Network | None = None,
    rates: Rates | None = None,
) -> Plan:
    """Decide how each gradient is sent.

    Among the candidates that serve a matrix, the one with the fewest bytes on the wire is taken; dense
    is always among them, so that no matrix costs more than without compression.

    Args:
        model: the network, wrapped in DistributedDataParallel or not; only shapes and types are read.
        compressor: a compressor or several candidates: names, mappings or objects; "auto" for all methods that
            lose nothing, or no more than a policy that sets ranks below the bound allows.
        policy: decides the ranks of methods that have one.
        bounds: from `rank_bounds`; without them nothing low-rank is certified lossless.
        world_size: workers whose gradients are averaged.
        local_size: workers of a node, for a two-level exchange; bytes are then those between nodes.
        network: where there are several candidates, or "auto", they are chosen by the seconds that steps are
            predicted to take on it, and not by bytes on the wire.
        rates: of the workers' machines, for those seconds; alike on all workers. None for the defaults.

    Raises:
        ValueError: an unknown name or field; a ranked method without a policy that sets ranks; bounds
            made for another world size, or for another network; nodes that do not share the workers evenly,
            or a method that cannot serve two levels.
    """
    if world_size % local_size:
        raise ValueError(f"{world_size} workers cannot be {local_size} to a node; give a divisor of {world_size}")
    policy = make_policy(policy)
    auto = is_auto(compressor)
    if auto:
        candidates, policy = expand(policy, bounded=bounds is not None, local_size=local_size)
    else:
        candidates = read_candidates(compressor)
    check_candidates(candidates, policy, local_size)
    infos = describe(model)
    if bounds is not None:
        bounds.check_world_size(world_size)
        _check_same_network([info for info in infos if info.is_matrix], bounds)
    chosen_by = network if len(candidates) > 1 else None
    return Planner(infos, candidates, policy, bounds, world_size, local_size, auto, chosen_by, rates or Rates()).plan()


def _subsets(candidates: Sequence[Compressor]) -> list[tuple[Compressor, ...]]:
    """All choices among the candidates, those of few first."""
    return [chosen for count in range(len(candidates) + 1) for chosen in combinations(candidates, count)]


def _check_same_network(matrices: Sequence[ParameterInfo], bounds: Bounds) -> None:
    for matrix in matrices:
        if matrix.name not in bounds or bounds[matrix.name].shape != matrix.matrix:
            found = f"shape {bounds[matrix.name].shape}" if matrix.name in bounds else "no entry"
            raise ValueError(
                f"the bounds were made for another network: {matrix.name} is {matrix.matrix}, the bounds have "
                f"{found}; call rank_bounds on this model"
            )

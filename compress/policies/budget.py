"""A number of bytes for a step, shared among the matrices."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.layers import ParameterInfo
from compress.policies.base import Decision, Observation, Policy, Situation
from compress.policies.ceiling import ceiling
from compress.policies.sharing import Option, share
from compress.policies.spectra import above_noise, steady_lags
from compress.tails import tails


class BudgetPolicy(Policy):
    """Share the bytes of a step among the matrices so that least is lost, summed over matrices.

    What counts as lost at rank r, by the singular values σ_i of the true mean gradient, is one of two:

    - *lag*: ⟨G, E⟩, E the residual that error feedback comes to rest at (`steady_lags`): to first order it is what
      the loss lacks, since the weights of error feedback are E behind those that all gradients had been delivered
      to (Karimireddy et al. 2019, arXiv 1901.09847).
    - *error*: Σ_{i>r} σ_i², what one step leaves out. So the problem is that of L-GreCo (Markov et al. 2023,
      arXiv 2210.17357) turned round: theirs is the least bytes for an error. For methods without error feedback.

    Either is counted in steps of the optimiser: those that divide each entry by its usual size (Adam, RMSprop) step
    as far along small gradients as along large ones, so that a matrix counts √(m·n)/‖G‖_F times.

    Counted are the matrices' bytes as one worker hands them to collectives; vectors are sent dense besides, at
    any rank, and are not counted. Every matrix gets rank 1 or more, and none more than its bound. Before the first
    audit all get the same rank, as high as the budget allows.

    Attributes:
        bytes: the budget.
        as_rank: or the bytes that `fixed` of this rank would take.
        minimise: what counts as lost.
        optimizer: "adam" for all that divide by the size of entries, "sgd" for those that do not.
        window: audits whose mean counts.
    """

    kind: Literal["budget"] = "budget"
    bytes: Annotated[int, Field(ge=1)] | None = None
    as_rank: Annotated[int, Field(ge=1)] | None = None
    minimise: Literal["lag", "error"] = "lag"
    optimizer: Literal["sgd", "adam"] = "sgd"
    window: Annotated[int, Field(ge=1)] = 4

    adaptive: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.bytes is None) == (self.as_rank is None):
            raise ValueError("give either bytes or as_rank, such as {'kind': 'budget', 'as_rank': 4}")
        return self

    def decide(self, situation: Situation) -> Mapping[str, Decision]:
        matrices = situation.matrices
        budget = self._budget(situation)
        least = _cost(situation, dict.fromkeys((matrix.name for matrix in matrices), 1))
        if least > budget:
            raise ValueError(
                f"policy 'budget' has {budget:.0f} bytes, and rank 1 for each of {len(matrices)} matrices takes "
                f"{least:.0f}; give {least:.0f} or more"
            )
        if all(situation.observed.get(matrix.name) for matrix in matrices):
            ranks, how = self._by_spectra(situation, budget - least, budget), "by audits"
        else:
            ranks, how = _evenly(situation, budget), "evenly"
        return {name: Decision(rank, f"rank {rank} of {budget:.0f} bytes shared {how}") for name, rank in ranks.items()}

    def _budget(self, situation: Situation) -> float:
        if self.bytes is not None:
            return float(self.bytes)
        assert self.as_rank is not None  # the validator saw to it
        return sum(situation.bytes_at(matrix, min(self.as_rank, *matrix.matrix)) for matrix in situation.matrices)

    def _by_spectra(self, situation: Situation, spare: float, budget: float) -> Mapping[str, int]:
        options = [self._options(matrix, situation, spare) for matrix in situation.matrices]
        chosen = share(options, budget).chosen
        return {matrix.name: option.rank for matrix, option in zip(situation.matrices, chosen, strict=True)}

    def _options(self, matrix: ParameterInfo, situation: Situation, spare: float) -> Sequence[Option]:
        """What a matrix can be given if all others get rank 1; `spare` bytes beyond its own rank 1."""
        most, seen = ceiling(matrix, situation), situation.observed[matrix.name][-self.window :]
        audits = [self._lost(matrix, audit, most) for audit in seen]
        lost = [sum(at_rank) / len(audits) for at_rank in zip(*audits, strict=True)]
        afford, full = spare + situation.bytes_at(matrix, 1), situation.bytes_at(matrix, most)
        options: list[Option] = []
        for rank in _tried(most):
            cost = situation.bytes_at(matrix, rank)
            if cost > afford:
                break
            if cost == full:  # as from where dense is cheaper: all that follow cost the same
                return [*options, Option(most, full, lost[most])]
            options.append(Option(rank, cost, lost[rank]))
        return options

    def _lost(self, matrix: ParameterInfo, audit: Observation, most: int) -> Sequence[float]:
        """What is lost at each rank up to `most`."""
        spectrum, norm = above_noise(audit, most), audit.gradient_norm
        lost = steady_lags(spectrum) if self.minimise == "lag" else tails(spectrum, norm)
        lost += lost[-1:] * (most + 1 - len(lost))  # of zeros and roundoff, no rank leaves less
        if self.optimizer == "sgd" or norm == 0:
            return lost
        m, n = matrix.matrix
        return [math.sqrt(m * n) / norm * one for one in lost]


def _tried(most: int) -> Iterator[int]:
    """All low ranks, and of high ones every sixteenth part: thousands would be asked for their bytes else."""
    rank = 1
    while rank < most:
        yield rank
        rank += max(1, rank // 16)
    yield most


def _evenly(situation: Situation, budget: float) -> Mapping[str, int]:
    """The same rank for all, but none above its bound; what remains raises the first ones by one."""
    most = {matrix.name: ceiling(matrix, situation) for matrix in situation.matrices}

    def at(rank: int) -> dict[str, int]:
        return {name: min(rank, limit) for name, limit in most.items()}

    low, high = 1, max(most.values(), default=1)  # bytes rise with the rank
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _cost(situation, at(middle)) <= budget else (low, middle - 1)
    ranks = at(low)
    spare = budget - _cost(situation, ranks)
    for matrix in situation.matrices:
        raised = min(low + 1, most[matrix.name])
        extra = situation.bytes_at(matrix, raised) - situation.bytes_at(matrix, ranks[matrix.name])
        if extra <= spare:
            ranks[matrix.name], spare = raised, spare - extra
    return ranks


def _cost(situation: Situation, ranks: Mapping[str, int]) -> float:
    return sum(situation.bytes_at(matrix, ranks[matrix.name]) for matrix in situation.matrices)

"""A number of bytes for a step, shared among the matrices."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compress.layers import ParameterInfo
from compress.policies.base import Decision, Policy, Situation
from compress.policies.ceiling import ceiling
from compress.policies.sharing import Option, share
from compress.policies.spectra import above_noise
from compress.tails import tails


class BudgetPolicy(Policy):
    """Share the bytes of a step so that Σ over matrices of Σ_{i>r} σ_i² is least, σ_i of the true mean gradient.

    It is the problem of L-GreCo (Markov et al. 2023, arXiv 2210.17357) turned round: theirs is the least bytes for an
    error. Counted are the matrices' bytes as one worker hands them to collectives; vectors are sent dense besides, at
    any rank, and are not counted. Every matrix gets rank 1 or more, and none more than its bound. Before the first
    audit all get the same rank, as high as the budget allows.

    Attributes:
        bytes: the budget.
        as_rank: or the bytes that `fixed` of this rank would take.
    """

    kind: Literal["budget"] = "budget"
    bytes: Annotated[int, Field(ge=1)] | None = None
    as_rank: Annotated[int, Field(ge=1)] | None = None

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
            ranks, how = self._by_spectra(situation, budget - least, budget), "by the last audit"
        else:
            ranks, how = _evenly(situation, budget), "evenly"
        return {name: Decision(rank, f"rank {rank} of {budget:.0f} bytes shared {how}") for name, rank in ranks.items()}

    def _budget(self, situation: Situation) -> float:
        if self.bytes is not None:
            return float(self.bytes)
        assert self.as_rank is not None  # the validator saw to it
        return sum(situation.bytes_at(matrix, min(self.as_rank, *matrix.matrix)) for matrix in situation.matrices)

    def _by_spectra(self, situation: Situation, spare: float, budget: float) -> Mapping[str, int]:
        options = [_options(matrix, situation, spare) for matrix in situation.matrices]
        chosen = share(options, budget).chosen
        return {matrix.name: option.rank for matrix, option in zip(situation.matrices, chosen, strict=True)}


def _options(matrix: ParameterInfo, situation: Situation, spare: float) -> Sequence[Option]:
    """What a matrix can be given if all others get rank 1; `spare` bytes beyond its own rank 1."""
    most, audit = ceiling(matrix, situation), situation.observed[matrix.name][-1]
    left = tails(above_noise(audit, most), audit.gradient_norm)
    left += left[-1:] * (most + 1 - len(left))  # of zeros and roundoff, no rank leaves less
    afford, full = spare + situation.bytes_at(matrix, 1), situation.bytes_at(matrix, most)
    options: list[Option] = []
    for rank in range(1, most + 1):
        cost = situation.bytes_at(matrix, rank)
        if cost > afford:
            break
        if cost == full:  # as from where dense is cheaper: all that follow cost the same
            return [*options, Option(most, full, left[most])]
        options.append(Option(rank, cost, left[rank]))
    return options


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

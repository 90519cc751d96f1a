"""The numbers of one audited matrix, as one worker measures them and all workers learn them."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from compress.audit.measures import RankMeasurement
from compress.audit.rank import measure_rank
from compress.audit.row import ratio

AFFORDABLE = 4e8
"""m·n·min(m, n) up to which all singular values are found: 40 ms or so on one core. Beyond, matrices are sketched."""

_UNKNOWN = -1.0


@dataclass(frozen=True)
class Measured:
    """See `AuditRow`; −1 where unknown."""

    measured_rank: float
    tolerance: float
    certified: float
    paper_rank: float
    stable_rank: float
    effective_rank: float
    energy99_rank: float
    gradient_norm: float
    error_norm: float
    cosine: float
    input_norm: float
    input_error_norm: float
    unavoidable_norm: float
    input_rank: float
    adjoint_rank: float
    found: float
    input_found: float

    @classmethod
    def numbers(cls, shape: torch.Size) -> int:
        """How many numbers describe an m × n matrix."""
        return len(fields(cls)) + 2 * min(shape)


@dataclass(frozen=True)
class Subject:
    """What is measured of one matrix.

    Attributes:
        gradient: G, m × n.
        input: M, the very same tensor where nothing was kept.
        delivered: Ĝ.
        dtype: of the parameter, whose roundoff the gradient carries.
        rank: that was communicated.
        bound: None where unknown.
        noise_floor: see `measure_rank`.
        factors: A (rows × n) and Δ (rows × m), or None.
    """

    gradient: Tensor
    input: Tensor
    delivered: Tensor
    dtype: torch.dtype
    rank: int
    bound: int | None
    noise_floor: float
    factors: tuple[Tensor, Tensor] | None
    full_spectrum: bool


def measure(subject: Subject) -> Tensor:
    """Measure one matrix: float64 on the host, of `Measured.numbers`, spectra filled up with zeros."""
    G, M, D = subject.gradient, subject.input, subject.delivered.to(subject.gradient.dtype)
    rank = _rank(subject, G, subject.bound, subject.noise_floor)
    error, size = _norm(G - D), _norm(G)
    if M is G:
        input_rank, input_error, input_size = rank, error, size
    else:
        input_rank, input_error, input_size = _rank(subject, M, None, 0.0), _norm(M - D), _norm(M)
    spectrum = input_rank.singular_values
    if input_rank.certified:
        left = float(spectrum[subject.rank :].norm())
    else:
        left = max(0.0, input_size**2 - float(spectrum[: subject.rank].square().sum())) ** 0.5
    ranks = [_rank(subject, part, None, 0.0) if len(part) else None for part in subject.factors or ()] or [None, None]
    delivered = _norm(D)
    measured = Measured(
        measured_rank=rank.numerical,
        tolerance=rank.tolerance,
        certified=rank.certified,
        paper_rank=_UNKNOWN if rank.paper is None else rank.paper,
        stable_rank=rank.stable,
        effective_rank=_UNKNOWN if rank.effective is None else rank.effective,
        energy99_rank=rank.energy99,
        gradient_norm=size,
        error_norm=error,
        cosine=ratio((size**2 + delivered**2 - error**2) / 2, size * delivered),
        input_norm=input_size,
        input_error_norm=input_error,
        unavoidable_norm=min(left, input_error),
        input_rank=_UNKNOWN if ranks[0] is None else ranks[0].numerical,
        adjoint_rank=_UNKNOWN if ranks[1] is None else ranks[1].numerical,
        found=len(rank.singular_values),
        input_found=len(spectrum),
    )
    places = min(G.shape)
    spectra = torch.zeros(2, places, dtype=torch.float64)
    for row, values in zip(spectra, (rank.singular_values, spectrum), strict=True):
        row[: len(values)] = values[:places]
    numbers = [float(getattr(measured, field.name)) for field in fields(measured)]
    return torch.cat([torch.tensor(numbers, dtype=torch.float64), spectra.view(-1)])


def read(numbers: Tensor) -> tuple[Measured, list[float], list[float]]:
    """What `measure` wrote: the figures, and the spectra of G and of M."""
    count = len(fields(Measured))
    measured = Measured(*numbers[:count].tolist())
    of_gradient, of_input = numbers[count:].view(2, -1)
    return measured, of_gradient[: int(measured.found)].tolist(), of_input[: int(measured.input_found)].tolist()


def _rank(subject: Subject, matrix: Tensor, bound: int | None, noise_floor: float) -> RankMeasurement:
    return measure_rank(
        matrix,
        bound=bound,
        noise_floor=noise_floor,
        dtype=subject.dtype,
        full_spectrum=subject.full_spectrum,
        affordable=AFFORDABLE,
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))

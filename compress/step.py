"""One step under way: algorithms, the requests they wait for, and what they have delivered."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.compressors.base import Matrix, Rounds
from compress.compressors.orthonormal import Orthonormalise, orthonormal
from compress.exchange import AllReduceMean, Exchange, Pending, Request

LAUNCH_BYTES = 1024 * 1024
"""Requests wait for others until they make up so much: many small collectives cost more than they overlap."""


@dataclass(eq=False)
class _Algorithm:
    """One matrix's algorithm, and what it waits for."""

    matrix: Matrix
    rounds: Rounds

    def proceed(self, answer: Tensor | None) -> "Request | Orthonormalise | dict[str, Tensor]":
        """Send it its answer (None to begin); returns what it asks for next, or what it delivers."""
        try:
            return next(self.rounds) if answer is None else self.rounds.send(answer)
        except StopIteration as done:
            delivered: dict[str, Tensor] = done.value
            return delivered


@dataclass(eq=False)
class _Wave:
    """Algorithms that wait for the answers of one launch, in the order of their requests."""

    algorithms: list[_Algorithm]
    pending: Pending


class Step:
    """Runs the algorithms of one step side by side, their requests fused into few collectives.

    Attributes:
        delivered: gradients by name, of the algorithms that have ended.
        finite: whether all answers so far were finite, on their device; None before `finish`.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.delivered: dict[str, Tensor] = {}
        self.finite: Tensor | None = None
        self._exchange = exchange
        self._waiting: list[tuple[_Algorithm, Request]] = []
        self._waves: list[_Wave] = []
        self._doubtful: list[Matrix] = []
        self._used_here: list[Tensor] = []

    def doubt(self, matrix: Matrix) -> None:
        """Deliver zeros for this matrix, and keep what it is owed, if no worker has a gradient of it.

        DDP leaves the gradient of a parameter that no worker uses as it is, so that what is delivered would be lost.
        """
        self._doubtful.append(matrix)
        self._used_here.append(matrix.gradient.ne(0).any())

    def begin(self, matrices: Iterable[tuple[Matrix, Rounds]]) -> None:
        """Start algorithms, up to their first request."""
        self._proceed([(_Algorithm(matrix, rounds), None) for matrix, rounds in matrices])

    def launch(self, at_least: int = 0) -> None:
        """Launch the requests that wait, if they make up so many bytes; alike on all workers."""
        size = sum(request.tensor.numel() * request.tensor.element_size() for _, request in self._waiting)
        if self._waiting and size >= at_least:
            pending = self._exchange.start([request for _, request in self._waiting])
            self._waves.append(_Wave([algorithm for algorithm, _ in self._waiting], pending))
            self._waiting = []

    def finish(self) -> None:
        """Carry on all algorithms together, one launch a round, until they have delivered."""
        self.launch()
        used = self._used_anywhere()
        while self._waves:
            waves, self._waves = self._waves, []
            answered: list[tuple[_Algorithm, Tensor | None]] = []
            for wave in waves:
                answered += zip(wave.algorithms, wave.pending.wait(), strict=True)
                finite = wave.pending.finite()
                # It stays on the answers' device, so that no host waits for it.
                self.finite = finite if self.finite is None else self.finite.to(finite.device) & finite
            for algorithm, _ in answered:
                assert self.finite is not None  # a wave has been answered
                algorithm.matrix.finite = self.finite
            for matrix, is_used in zip(self._doubtful, used, strict=True):
                matrix.finite = matrix.finite & is_used
            self._proceed(answered)
            self.launch()
        for matrix in self._doubtful:
            assert self.finite is not None
            name = matrix.info.name
            kept = matrix.finite | ~self.finite  # what is not finite is delivered so
            self.delivered[name] = torch.where(kept, self.delivered[name], 0.0)

    def _used_anywhere(self) -> Iterable[Tensor]:
        """For each doubtful matrix, whether any worker has a gradient of it: booleans without axes."""
        if not self._doubtful:
            return ()
        (share,) = self._exchange.run([AllReduceMean(torch.stack(self._used_here).float())])
        used: Tensor = share > 0
        return used.unbind()

    def _proceed(self, answered: list[tuple[_Algorithm, Tensor | None]]) -> None:
        while answered:
            to_orthonormalise: list[tuple[_Algorithm, Tensor]] = []
            for algorithm, answer in answered:
                asked = algorithm.proceed(answer)
                if isinstance(asked, Orthonormalise):
                    to_orthonormalise.append((algorithm, asked.factor))
                elif isinstance(asked, dict):
                    self.delivered.update(asked)
                else:
                    self._waiting.append((algorithm, asked))
            answered = list(_orthonormalised(to_orthonormalise))


def _orthonormalised(asked: list[tuple[_Algorithm, Tensor]]) -> Iterable[tuple[_Algorithm, Tensor]]:
    """Answer those who wait for an orthonormal basis, factors of one shape together."""
    alike: dict[tuple[object, ...], list[tuple[_Algorithm, Tensor]]] = defaultdict(list)
    for algorithm, factor in asked:
        alike[tuple(factor.shape), factor.dtype, factor.device].append((algorithm, factor))
    for group in alike.values():
        bases = orthonormal(torch.stack([factor for _, factor in group]))
        yield from ((algorithm, basis) for (algorithm, _), basis in zip(group, bases, strict=True))

"""Which samples each worker takes in each step, and how they come to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapStyle

from models.data.errors import DataError
from models.data.samples import Batch, Samples

Step = list[Batch]
"""The batches of one step, one for each backward pass."""


@dataclass(frozen=True)
class Sharing:
    """How steps are shared.

    Attributes:
        batch_size: samples of a step, over all workers and accumulation steps together.
        accumulation_steps: backward passes of a step.
        world_size: workers.
        rank: of this worker.
        partition: `iid` or `by_class`, see `DataConfig`.
        seed: of the order.
    """

    batch_size: int
    accumulation_steps: int
    world_size: int
    rank: int
    partition: Literal["iid", "by_class"]
    seed: int


class Order:
    """The order in which samples are taken: a new one each epoch, by the seed alone.

    Under `iid` a step's samples are the same on any number of workers, and each takes every `world_size`-th.
    """

    def __init__(self, samples: Samples, sharing: Sharing) -> None:
        self._sharing = sharing
        self._own = _own_numbers(samples, sharing)
        shared = sharing.world_size if sharing.partition == "iid" else 1
        self._taken = sharing.batch_size // sharing.world_size * shared
        self.steps_per_epoch = len(self._own) // self._taken
        self._epoch: tuple[int, Tensor] | None = None

    def numbers(self, step: int) -> Tensor:
        """The numbers of this worker's samples in a step, the first being step 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        numbers = self._shuffled(epoch)[place * self._taken : (place + 1) * self._taken]
        return numbers[self._sharing.rank :: self._sharing.world_size] if self._sharing.partition == "iid" else numbers

    def pass_seed(self, step: int) -> int:
        """The seed of what is drawn in a step's epoch."""
        return self._epoch_seed(step // self.steps_per_epoch)

    def _epoch_seed(self, epoch: int) -> int:
        return self._sharing.seed * 1_000_003 + epoch

    def _shuffled(self, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(self._epoch_seed(epoch))
            self._epoch = epoch, self._own[torch.randperm(len(self._own), generator=generator)]
        return self._epoch[1]


def _own_numbers(samples: Samples, sharing: Sharing) -> Tensor:
    """The samples that this worker ever draws from: all, or those of its classes.

    Raises:
        DataError: there are no classes, or fewer samples than a step takes, or it takes none of some worker.
    """
    passes = sharing.world_size * sharing.accumulation_steps
    if sharing.batch_size < passes:
        raise DataError(
            f"train.batch_size is {sharing.batch_size}, and {sharing.world_size} workers × "
            f"{sharing.accumulation_steps} accumulation steps take a sample each or more; take {passes} or more"
        )
    if len(samples) < sharing.world_size:
        raise DataError(
            f"cluster.workers is {sharing.world_size}, more than the {len(samples):,} training samples; take fewer"
        )
    numbers = torch.arange(len(samples))
    if sharing.partition == "by_class":
        labels = samples.labels
        if labels is None:
            raise DataError("data.partition is by_class, and these samples have no classes; allowed is iid")
        size = len(samples) // sharing.world_size  # of every share, so that epochs are as long on all workers
        numbers = labels.argsort(stable=True)[sharing.rank * size : (sharing.rank + 1) * size]
    needed = sharing.batch_size if sharing.partition == "iid" else sharing.batch_size // sharing.world_size
    if len(numbers) < needed:
        whose = "there are" if sharing.partition == "iid" else "each worker has"
        raise DataError(
            f"train.batch_size is {sharing.batch_size} over {sharing.world_size} workers, and {whose} "
            f"{len(numbers):,} training samples; take {len(numbers) * sharing.batch_size // needed} or less"
        )
    return numbers


class _Steps(MapStyle[Step]):
    """Steps by number, for torch's DataLoader."""

    def __init__(self, samples: Samples, sharing: Sharing, windows: Sequence[tuple[int, int]]) -> None:
        self._samples = samples
        self._order = Order(samples, sharing)
        self._size = sharing.batch_size // (sharing.world_size * sharing.accumulation_steps)
        self._windows = windows

    def __getitem__(self, step: int) -> Step:
        drawn, window = divmod(step, max(1, len(self._windows)))
        seed = self._order.pass_seed(drawn)
        batches = [self._samples.take(part, seed) for part in self._order.numbers(drawn).split(self._size)]
        return [batch.window(*self._windows[window]) for batch in batches] if self._windows else batches


def load_steps(
    samples: Samples,
    sharing: Sharing,
    steps: range,
    *,
    windows: Sequence[tuple[int, int]] = (),
    processes: int = 0,
    pinned: bool = False,
) -> Iterator[Step]:
    """This worker's batches of each step, one for each of its backward passes.

    Args:
        samples: to train on.
        sharing: who takes which.
        steps: to give; they are the same whether one starts at 0 or goes on later.
        windows: first and last step (exclusive) of the windows that series are cut into; a series takes as
            many training steps as there are windows. None for whole samples.
        processes: that prepare batches ahead; 0 prepares each when it is asked for.
        pinned: whether batches are copied to memory that a GPU reads by itself.

    Raises:
        DataError: the samples do not suffice.
    """
    loader = DataLoader(
        _Steps(samples, sharing, windows),
        batch_size=None,
        sampler=steps,
        num_workers=processes,
        pin_memory=pinned,
        # Not forked: the process that asks has threads of its own.
        multiprocessing_context="spawn" if processes else None,
    )
    return iter(loader)


def check_sharing(samples: Samples, sharing: Sharing) -> None:
    """Tell beforehand what `load_steps` would.

    Raises:
        DataError: the samples do not suffice.
    """
    Order(samples, sharing)

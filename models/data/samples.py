"""Samples that are taken by number, and the batches that they come in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples for one pass: `network(*inputs)`, `loss(output, *targets)`.

    Attributes:
        inputs: tensors whose first axis is the samples'; series have their steps on the second.
        targets: the same; for reconstruction the very tensor that is the input.
        windowed: whether these are some steps of series that come window by window: a recurrent network goes
            on from the state in which it left the window before.
        begins: whether these are the first steps of their series.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    windowed: bool = False
    begins: bool = True

    def __len__(self) -> int:
        return len(self.inputs[0])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to a device, and floating-point tensors to a type; a target that is an input stays one."""
        return self._each(
            lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
        )

    def pin_memory(self) -> "Batch":
        """Copy to memory that a GPU reads by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

    def window(self, start: int, stop: int) -> "Batch":
        """Steps `start` to `stop` of series; what is not as long as they are stays as it is."""
        steps = self.inputs[0].shape[1]
        cut = self._each(lambda tensor: tensor[:, start:stop] if tensor.shape[1:2] == (steps,) else tensor)
        return replace(cut, windowed=True, begins=start == 0)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed = {id(tensor): change(tensor) for tensor in (*self.inputs, *self.targets)}
        return replace(
            self,
            inputs=tuple(changed[id(tensor)] for tensor in self.inputs),
            targets=tuple(changed[id(tensor)] for tensor in self.targets),
        )


class Samples(ABC):
    """Samples that can be taken by number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        """The samples of these numbers.

        Args:
            indices: (samples,), whole numbers.
            seed: of what is drawn at random for each of them, such as which tokens are masked. The same
                seed and number give the same sample, whatever others are taken with it.
        """

    @property
    def labels(self) -> Tensor | None:
        """The class of each sample, (samples,); None where there are none."""
        return None


@dataclass(frozen=True)
class TensorSamples(Samples):
    """Samples in memory.

    Attributes:
        inputs: samples × features, or samples × steps × features.
        targets: class numbers (samples,), or numbers; None to reconstruct the inputs.
    """

    inputs: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        inputs = self.inputs[indices]
        return Batch((inputs,), (inputs if self.targets is None else self.targets[indices],))

    @property
    def labels(self) -> Tensor | None:
        is_class = self.targets is not None and not self.targets.is_floating_point()
        return self.targets if is_class else None


@dataclass(frozen=True)
class Chosen(Samples):
    """Some samples of others, by number."""

    samples: Samples
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        return self.samples.take(self.indices[indices], seed)

    @property
    def labels(self) -> Tensor | None:
        labels = self.samples.labels
        return None if labels is None else labels[self.indices]


@dataclass(frozen=True)
class Reshaped(Samples):
    """Images as vectors or as series of rows: a first input of another shape."""

    samples: Samples
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        batch = self.samples.take(indices, seed)
        (images,) = batch.inputs
        shaped = (images if self.order is None else images.permute(0, *self.order)).reshape(len(images), *self.shape)
        return replace(batch, inputs=(shaped,))

    @property
    def labels(self) -> Tensor | None:
        return self.samples.labels

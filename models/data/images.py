"""Images in bytes, and what data sets of images share."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from models.config import DataConfig, Folder
from models.data.cache import MappedArray, cached, read_cached
from models.data.dataset import Dataset, digest_of
from models.data.errors import DataError
from models.data.folds import check_fold, hold_out
from models.data.samples import Batch, Samples
from models.data.signature import Kind, Signature
from models.tasks import Classification

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

IMAGES, LABELS, MOMENTS, DIGEST = "images.npy", "labels.npy", "moments.npy", "digest"
"""Files of a split in the cache."""


@dataclass(frozen=True)
class ImageSamples(Samples):
    """Images of bytes, given as numbers of mean 0 and deviation 1.

    Attributes:
        images: samples × channels × height × width, bytes.
        classes: (samples,).
        mean: of each channel over all training images, in bytes.
        deviation: likewise.
    """

    images: MappedArray
    classes: MappedArray
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        pixels = torch.from_numpy(self.images.array[indices.numpy()]).to(torch.float32)
        mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.deviation))
        return Batch(((pixels - mean) / deviation,), (torch.from_numpy(self.classes.array[indices.numpy()]),))

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(np.array(self.classes.array))


@dataclass(frozen=True)
class Split:
    """One split as its files have it.

    Attributes:
        expected: images of the whole data set, more than are read where files are missing.
        read: gives images (samples × channels × height × width) and classes; called where nothing is cached.
    """

    expected: int
    read: Callable[[], tuple[Pixels, Labels]]


@dataclass(frozen=True)
class Files:
    """The files of a data set of images, found and not yet read.

    Attributes:
        source: where they lie, in words.
        state: a hash that changes when they do.
        classes: that they hold.
        classes_expected: of the whole data set.
    """

    source: str
    state: str
    train: Split
    held_out: Split
    classes: int
    classes_expected: int


class ImageData(DataConfig):
    """Images to be classified.

    Attributes:
        root: the folder that holds data sets; None takes GRADRANK_DATA_ROOT.
        image_size: height and width that images are resized to; None for their own.
        held_out: `official` trains on the official training images and evaluates on the official held-out
            ones; `fold` cross-validates in the training images.
    """

    root: Folder | None = None
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    held_out: Literal["official", "fold"] = "official"

    gives: ClassVar[Kind | None] = "images"

    @abstractmethod
    def find(self) -> Files:
        """Find the files.

        Raises:
            DataError: files are missing.
        """

    def load(self, fold: int, length: int | None = None) -> Dataset:
        check_fold(fold)
        files = self.find()
        splits = {"training": files.train, "held-out": files.held_out}
        folders = {name: self._cached(name, split, files.state) for name, split in splits.items()}
        train_images = MappedArray(folders["training"] / IMAGES)
        channels = train_images.array.shape[1]
        moments = MappedArray(folders["training"] / MOMENTS).array
        mean, deviation = tuple(moments[0].tolist()), tuple(np.maximum(moments[1], 1e-6).tolist())
        train, test = (
            ImageSamples(MappedArray(folder / IMAGES), MappedArray(folder / LABELS), mean, deviation)
            for folder in folders.values()
        )
        if train.images.array.shape[1:] != test.images.array.shape[1:]:
            shapes = (" × ".join(map(str, part.images.array.shape[1:])) for part in (train, test))
            raise DataError(
                f"{files.source}: training images are {', held-out ones '.join(shapes)} (channels, height, width); all "
                "are expected to be as large"
            )
        by_fold = self.held_out == "fold"
        used = {"training": train} if by_fold else {"training": train, "held-out": test}
        notes = [
            f"{len(samples):,} of {splits[name].expected:,} {name} images"
            for name, samples in used.items()
            if len(samples) < splits[name].expected
        ]
        if files.classes < files.classes_expected:
            notes.append(f"{files.classes} of {files.classes_expected} classes")
        contents = [read_cached(folder / DIGEST) for folder in folders.values()]
        training, held_out = hold_out(train, fold, files.source) if by_fold else (train, test)
        height, width = train_images.array.shape[2:]
        return Dataset(
            name=self.kind,
            source=files.source,
            digest=digest_of(*contents, self.held_out, str(fold) if by_fold else ""),
            task=Classification(),
            signature=Signature("images", (channels, height, width), files.classes),
            train=training,
            test=held_out,
            notes=tuple(notes),
        )

    def _cached(self, name: str, split: Split, state: str) -> Path:
        def make(folder: Path) -> None:
            images, labels = split.read()
            if self.image_size is not None:
                images = resized(images, self.image_size)
            np.save(folder / IMAGES, images)
            np.save(folder / LABELS, labels)
            np.save(folder / MOMENTS, _moments(images))
            (folder / DIGEST).write_text(digest_of(images, labels))

        return cached(f"{self.kind}-{name}", (state, self.image_size), make)


def resized(images: Pixels, size: int) -> Pixels:
    """Resize to size × size, with antialiasing: samples × channels × height × width.

    Raises:
        DataError: there is not enough memory.
    """
    if images.shape[2:] == (size, size):
        return images
    needed, free = images.shape[0] * images.shape[1] * size**2, psutil.virtual_memory().available
    if needed > free:  # told here, since a process that runs out of memory is killed without a word
        raise DataError(
            f"data.image_size is {size}: {len(images):,} images of that size take {needed / 1e9:,.1f} GB of memory, "
            f"and {free / 1e9:,.1f} GB are free; take a smaller size"
        )
    result = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for number, image in enumerate(images):
        for channel, plane in enumerate(image):
            result[number, channel] = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
    return result


def _moments(images: Pixels) -> NDArray[np.float64]:
    """Mean and deviation of each channel, 2 × channels; counted by value, so that no copy in floats is made."""
    values = np.arange(256)
    moments = []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for part in np.array_split(images, 64):
            counts += np.bincount(part[:, channel].ravel(), minlength=256)
        shares = counts / counts.sum()
        mean = float(shares @ values)
        moments.append((mean, float(shares @ (values - mean) ** 2) ** 0.5))
    return np.array(moments).T

"""MNIST from its idx files (LeCun et al. 1998)."""

import struct
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data.errors import DataError
from models.data.files import digest_of_files, find_folder, read_bytes
from models.data.images import Files, ImageData, Labels, Pixels, Split

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
HELD_OUT = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = 10
SIZE = 28
FOLDERS = ("mnist/MNIST/raw", "MNIST/raw", "mnist")
_BYTES = 0x08
"""Third byte of an idx file of unsigned bytes; the fourth counts its axes."""


class MNIST(ImageData):
    """28 × 28 images of handwritten digits, one channel."""

    kind: Literal["mnist"] = "mnist"

    def find(self) -> Files:
        folder = find_folder(self.root, self.kind, FOLDERS, [f"{name}(.gz)" for name in (*TRAIN, *HELD_OUT)])
        return Files(
            source=f"idx files of MNIST in {folder}",
            state=digest_of_files([folder / name for name in (*TRAIN, *HELD_OUT)]),
            train=Split(60_000, lambda: _read(folder, *TRAIN)),
            held_out=Split(10_000, lambda: _read(folder, *HELD_OUT)),
            classes=CLASSES,
            classes_expected=CLASSES,
        )


def _read(folder: Path, images: str, labels: str) -> tuple[Pixels, Labels]:
    pixels, classes = read_idx(folder / images, axes=3), read_idx(folder / labels, axes=1)
    if len(pixels) != len(classes):
        raise DataError(f"{folder / labels}: holds {len(classes):,} labels for {len(pixels):,} images of {images}")
    if classes.max() >= CLASSES:
        raise DataError(f"{folder / labels}: holds label {classes.max()}; 0 to {CLASSES - 1} are expected")
    return pixels[:, None], classes.astype(np.int64)


def magic(axes: int) -> bytes:
    """What an idx file of bytes begins with."""
    return bytes([0, 0, _BYTES, axes])


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: two zero bytes, the type, the number of axes, their lengths, the values.

    Raises:
        DataError: it cannot be read, or is not such a file.
    """
    content = read_bytes(path)
    if content[:4] != magic(axes):
        raise DataError(
            f"{path}: begins with {content[:4].hex() or 'nothing'}; an idx file of bytes with {axes} "
            f"{'axis' if axes == 1 else 'axes'} begins with {magic(axes).hex()}"
        )
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{path}: ends within its header, after {len(content)} of {start} bytes")
    shape = struct.unpack(f">{axes}I", content[4:start])
    if 0 in shape:
        raise DataError(f"{path}: holds nothing, its header says {' × '.join(map(str, shape))}; 1 or more are expected")
    expected = start + prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: holds {len(content):,} bytes; its header says {' × '.join(map(str, shape))}, which takes "
            f"{expected:,}. Fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)

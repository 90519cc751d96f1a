"""Images of the hub as idx files and as CIFAR's records."""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.data import cifar10, mnist
from models.data.errors import DataError
from models.data.fetching.rows import Rows, stored_bytes
from models.data.images import Pixels


def encode_mnist(split: str, rows: Rows) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The images and the labels of a split, each an idx file."""
    images, labels = {"train": mnist.TRAIN, "test": mnist.HELD_OUT}[split]
    yield images, _idx_images(images, rows)
    yield labels, _idx_labels(labels, rows)


def _idx_images(name: str, rows: Rows) -> Iterator[bytes]:
    yield mnist.magic(axes=3) + struct.pack(">3I", len(rows), mnist.SIZE, mnist.SIZE)
    for (images,) in rows.batches(name, "image"):
        yield b"".join(decoded(image, "L", (mnist.SIZE, mnist.SIZE)).tobytes() for image in images)


def _idx_labels(name: str, rows: Rows) -> Iterator[bytes]:
    yield mnist.magic(axes=1) + struct.pack(">I", len(rows))
    for (labels,) in rows.batches(name, "label"):
        yield _bytes_of(labels)


def encode_cifar10(split: str, rows: Rows) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The files of 10,000 images each.

    The hub has the training files in another order, as they lie in the archive that its copy was made from;
    so each is known by its checksum.

    Raises:
        DataError: 10,000 images are none of the files.
    """
    for start in range(0, len(rows), cifar10.IMAGES_A_FILE):
        stop = min(start + cifar10.IMAGES_A_FILE, len(rows))
        batches = rows.batches(f"images of {split}", "img", "label", start=start, stop=stop)
        content = b"".join(_records(*batch) for batch in batches)
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if md5 not in cifar10.NAMES:
            raise DataError(
                f"images {start:,} to {stop - 1:,} of {split!r}, as they were fetched, have MD5 {md5}; that of one of "
                f"{', '.join(cifar10.NAMES.values())} is expected. Nothing is written of them"
            )
        yield cifar10.NAMES[md5], [content]


def _records(images: list[Any], labels: list[int]) -> bytes:
    height, width = cifar10.SHAPE[1:]
    planes = [decoded(image, "RGB", (height, width)).transpose(2, 0, 1).tobytes() for image in images]
    return b"".join(bytes([label]) + plane for label, plane in zip(_bytes_of(labels), planes, strict=True))


def _bytes_of(labels: list[int]) -> bytes:
    try:
        return bytes(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"labels that were fetched are not all of 0 to 255 ({error})") from error


def decoded(stored: Mapping[str, Any], mode: str, size: tuple[int, int]) -> Pixels:
    """Decode a PNG, which loses nothing, into height × width (× 3) bytes.

    Args:
        stored: the image as the hub has it.
        mode: `L` or `RGB`.
        size: height and width.

    Raises:
        DataError: it is no such image.
    """
    content = stored_bytes(stored)
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            pixels = np.asarray(image)
            found = image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"an image that was fetched is no PNG that can be decoded ({error})") from error
    if found != mode or pixels.shape[:2] != size:
        raise DataError(
            f"an image that was fetched is {' × '.join(map(str, pixels.shape[:2]))} in mode {found}; "
            f"{' × '.join(map(str, size))} in mode {mode} is expected"
        )
    return pixels

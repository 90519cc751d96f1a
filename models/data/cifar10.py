"""CIFAR-10 from its binary files (Krizhevsky 2009)."""

from pathlib import Path
from typing import Literal

import numpy as np

from models.data.errors import DataError
from models.data.files import digest_of_files, find_folder, listed, read_bytes
from models.data.images import Files, ImageData, Labels, Pixels, Split

TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = "test_batch.bin"
NAMES = {
    "5dd7e06a14cb22eb9f671a540d1b7c25": "data_batch_1.bin",
    "5ea93a67294ea407fff1d09f752e9692": "data_batch_2.bin",
    "942cd6a4bcdd0dd3c604fbe906cb4421": "data_batch_3.bin",
    "ae636b3ba5c66a11e91e8cb52e771fcb": "data_batch_4.bin",
    "53f37980c15c3d472c316c40844f3f0d": "data_batch_5.bin",
    "803d5f7f4d78ea53de84dbe85f74fb6d": "test_batch.bin",
}
"""The files by their MD5."""
FOLDERS = ("cifar10/cifar-10-batches-bin", "cifar-10-batches-bin", "cifar10")
CLASSES = 10
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image: its class, then its planes of red, green and blue."""
IMAGES_A_FILE = 10_000


class CIFAR10(ImageData):
    """32 × 32 colour images of ten kinds of things."""

    kind: Literal["cifar10"] = "cifar10"

    def find(self) -> Files:
        folder = find_folder(self.root, self.kind, FOLDERS, [*TRAIN, TEST])
        names = {path.name.removesuffix(".gz") for path in listed(folder)}
        train = [folder / name for name in TRAIN if name in names]
        if not train:
            raise DataError(f"{folder / TRAIN[0]}: no such file, nor any other of {', '.join(TRAIN)}")
        held_out = [folder / TEST]
        return Files(
            source=f"binary files of CIFAR-10 in {folder}",
            state=digest_of_files([*train, *held_out]),
            train=Split(IMAGES_A_FILE * len(TRAIN), lambda: _read(train)),
            held_out=Split(IMAGES_A_FILE, lambda: _read(held_out)),
            classes=CLASSES,
            classes_expected=CLASSES,
        )


def _read(paths: list[Path]) -> tuple[Pixels, Labels]:
    records = np.concatenate([read_records(path) for path in paths])
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0].astype(np.int64)


def read_records(path: Path) -> Pixels:
    """Read a binary file: images × 3,073 bytes.

    Raises:
        DataError: it cannot be read, or is not such a file.
    """
    content = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if len(content) == 0 or len(content) % RECORD:
        raise DataError(
            f"{path}: holds {len(content):,} bytes; images take {RECORD:,} each, and {IMAGES_A_FILE * RECORD:,} "
            "are expected. Fetch it again"
        )
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() >= CLASSES:
        wrong = int(np.flatnonzero(records[:, 0] >= CLASSES)[0])
        raise DataError(
            f"{path}: image {wrong} has class {records[wrong, 0]}; 0 to {CLASSES - 1} are expected, as the "
            "binary version of CIFAR-10 has them"
        )
    return records

"""Tiny-ImageNet from its tree of JPEG files: 64 × 64 images of 200 classes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from models.data.dataset import digest_of
from models.data.errors import DataError
from models.data.files import find_folder, is_folder, listed, read_lines, status
from models.data.images import Files, ImageData, Labels, Pixels, Split

FOLDERS = ("tiny-imagenet/tiny-imagenet-200", "tiny-imagenet-200", "tiny-imagenet")
CLASSES = 200
SIZE = 64


class TinyImageNet(ImageData):
    """64 × 64 colour images; those of `val`, whose classes are known, are held out.

    Classes are those of `wnids.txt`, in its order.
    """

    kind: Literal["tiny_imagenet"] = "tiny_imagenet"

    def find(self) -> Files:
        folder = find_folder(self.root, self.kind, FOLDERS, ["wnids.txt", "train/…/images/*.JPEG", "val/images/*.JPEG"])
        classes = _class_numbers(folder / "wnids.txt")
        train, held_out = _train_files(folder, classes), _held_out_files(folder, classes)
        # Sizes and times, as make has it: reading 110,000 files for each run would take longer than training.
        stated = [(str(path.relative_to(folder)), label, *_stated(path)) for path, label in [*train, *held_out]]
        return Files(
            source=f"JPEG files of Tiny-ImageNet in {folder}",
            state=digest_of(repr(stated)),
            train=Split(100_000, lambda: _decode(train)),
            held_out=Split(10_000, lambda: _decode(held_out)),
            classes=len(classes),
            classes_expected=CLASSES,
        )


def _class_numbers(path: Path) -> dict[str, int]:
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if len(names) > CLASSES:
        raise DataError(f"{path}: names {len(names)} classes; at most {CLASSES} are expected")
    for name in names:
        if not _is_name(name):
            raise DataError(f"{path}: names the class {name[:60]!r}; the name of a folder in train is expected")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: names a class twice; each is expected once")
    return {name: number for number, name in enumerate(names)}


def _train_files(folder: Path, classes: dict[str, int]) -> list[tuple[Path, int]]:
    files = []
    for name, label in classes.items():
        images = folder / "train" / name / "images"
        if not is_folder(images):
            raise DataError(f"{images}: no such folder; wnids.txt names its class")
        found = [path for path in listed(images) if path.suffix.lower() in (".jpeg", ".jpg")]
        if not found:
            raise DataError(f"{images}: holds no JPEG files; wnids.txt names the class {name}, whose images go there")
        files += [(path, label) for path in found]
    return files


def _held_out_files(folder: Path, classes: dict[str, int]) -> list[tuple[Path, int]]:
    annotations, images = folder / "val" / "val_annotations.txt", folder / "val" / "images"
    files = []
    for number, line in enumerate(read_lines(annotations), start=1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        kind = rest.partition("\t")[0].strip()
        if kind not in classes:
            raise DataError(
                f"{annotations}: line {number} is {line[:60]!r}; a file, a tab and a class of wnids.txt are expected"
            )
        if not _is_name(name):
            raise DataError(f"{annotations}: line {number} names the file {name[:60]!r}; one in val/images is expected")
        if not os.path.lexists(images / name):
            raise DataError(f"{images / name}: no such file; line {number} of {annotations.name} names it")
        files.append((images / name, classes[kind]))
    return files


def _is_name(name: str) -> bool:
    """Whether a name stays within its folder."""
    return name not in ("", ".", "..") and os.sep not in name


def _stated(path: Path) -> tuple[int, int]:
    found = status(path)
    return found.st_size, found.st_mtime_ns


def _decode(files: Sequence[tuple[Path, int]]) -> tuple[Pixels, Labels]:
    """Decode images by several threads, since decoding frees the interpreter."""
    images = np.empty((len(files), 3, SIZE, SIZE), dtype=np.uint8)

    def decode(number: int) -> None:
        images[number] = decode_image(files[number][0]).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        done = threads.map(decode, range(len(files)))
        console = Console(stderr=True)
        hidden = not console.is_terminal  # else an empty line would be printed
        for _ in track(done, "decoding JPEGs", len(files), console=console, transient=True, disable=hidden):
            pass
    return images, np.array([label for _, label in files], dtype=np.int64)


def decode_image(path: Path) -> Pixels:
    """Decode a JPEG into 64 × 64 × 3 bytes; a grey one has three equal planes, and CMYK becomes RGB.

    Raises:
        DataError: it cannot be read or decoded, or is of another size.
    """
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.size == (SIZE, SIZE):  # else not decoded: a broken header may say billions of pixels
                return np.asarray(image.convert("RGB"))
            width, height = image.size
    except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no JPEG that can be decoded ({error}); fetch it again") from error
    except OSError as error:  # of the disk, or of a truncated picture
        raise DataError(f"{path}: cannot be read as a JPEG: {error.strerror or error}") from error
    raise DataError(f"{path}: is {height} × {width}; {SIZE} × {SIZE} pixels are expected")

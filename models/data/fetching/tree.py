"""Tiny-ImageNet of the hub as its tree of JPEG files."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data.errors import DataError
from models.data.fetching.expected import MISSING, Expected, place
from models.data.fetching.rows import Rows, stored_bytes
from models.data.fetching.source import Source

CLASSES, TRAIN, HELD_OUT = "wnids.txt", "train", "val"
ANNOTATIONS = "val_annotations.txt"
_WNID = re.compile(r"n\d{8}")
"""Number of a noun in WordNet. Nothing else becomes the name of a folder."""


@dataclass(frozen=True, kw_only=True)
class TreeSource(Source):
    """Images in folders by class; the hub does not keep their file names, so that they are numbered anew.

    Attributes:
        classes: how many there are.
        train_images: likewise.
        held_out_images: likewise.
    """

    classes: int
    train_images: int
    held_out_images: int

    @property
    def parts(self) -> Mapping[str, str]:
        return {TRAIN: "train", CLASSES: "train", HELD_OUT: "valid"}

    @property
    def contents(self) -> str:
        return f"{CLASSES}, train/…/images/*.JPEG, val/images/*.JPEG, val/{ANNOTATIONS}"

    def fault(self, folder: Path, part: str, *, thorough: bool) -> str:
        if not (folder / part).exists():
            return MISSING
        try:
            if part == CLASSES:
                return _count(_lines(folder / CLASSES), self.classes, "classes")
            if part == TRAIN:
                return _count(sum(map(_images, (folder / TRAIN).iterdir())), self.train_images, "images")
            return _count(_images(folder / HELD_OUT), self.held_out_images, "images") or _count(
                _lines(folder / HELD_OUT / ANNOTATIONS), self.held_out_images, "annotations"
            )
        except OSError as error:
            return f"cannot be read ({error})"

    def write(self, folder: Path, split: str, rows: Rows, wanted: Iterable[str]) -> None:
        expected = self.train_images if split == "train" else self.held_out_images
        if len(rows) != expected:
            raise DataError(f"{len(rows):,} images were fetched of {split!r}; {expected:,} are expected")
        names = rows.class_names("label")
        if len(names) != self.classes or not all(_WNID.fullmatch(name) for name in names):
            raise DataError(
                f"{len(names)} classes were fetched, from {names[0]!r} to {names[-1]!r}; {self.classes} named as in "
                "WordNet, such as 'n01443537', are expected"
            )
        # What names the images comes last, so that a tree which is not whole is not taken for one.
        if split == "train":
            self._write_train(folder, rows, names)
            place(folder / CLASSES, [f"{name}\n".encode() for name in names], Expected(lines=self.classes))
        else:
            annotations = self._write_held_out(folder / HELD_OUT, rows, names)
            place(folder / HELD_OUT / ANNOTATIONS, annotations, Expected(lines=self.held_out_images))

    def _write_train(self, folder: Path, rows: Rows, names: list[str]) -> None:
        counts: Counter[str] = Counter()
        for content, name in _labelled(rows.batches(TRAIN, "image", "label"), names):
            _place_image(folder / TRAIN / name / "images" / f"{name}_{counts[name]}.JPEG", content)
            counts[name] += 1

    def _write_held_out(self, folder: Path, rows: Rows, names: list[str]) -> list[bytes]:
        annotations: list[bytes] = []
        for number, (content, name) in enumerate(_labelled(rows.batches(HELD_OUT, "image", "label"), names)):
            _place_image(folder / "images" / f"val_{number}.JPEG", content)
            annotations.append(f"val_{number}.JPEG\t{name}\n".encode())
        return annotations


def _labelled(batches: Iterable[tuple[Any, ...]], names: list[str]) -> Iterator[tuple[bytes, str]]:
    """Each image's file and the name of its class."""
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            if not 0 <= label < len(names):
                raise DataError(f"an image was fetched with class {label}; 0 to {len(names) - 1} are expected")
            yield stored_bytes(image), names[label]


def _place_image(path: Path, content: bytes) -> None:
    if not (path.is_file() and path.read_bytes() == content):
        place(path, [content], Expected(size=len(content)))


def _count(found: int, expected: int, what: str) -> str:
    return "" if found == expected else f"holds {found:,} {what}; {expected:,} are expected"


def _lines(path: Path) -> int:
    return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n")) if path.exists() else 0


def _images(folder: Path) -> int:
    """JPEG files of a class or of what is held out."""
    images = folder / "images"
    return sum(path.suffix.lower() in (".jpeg", ".jpg") for path in images.iterdir()) if images.is_dir() else 0

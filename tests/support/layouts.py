"""Tiny data sets in the layouts of the real ones, to be broken by tests."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    "a",
    "man",
    "in",
    "blue",
    "stands",
    "on",
    "the",
    "ladder",
    "two",
    "young",
    "girls",
    "are",
    "at",
    "their",
    "house",
]
CLASSES = ("n01", "n02")


def idx(array: np.ndarray) -> bytes:
    """The bytes of an idx file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(root: Path) -> Path:
    """10 and 5 images of 4 × 4."""
    folder, random = _made(root / "mnist"), np.random.default_rng(0)
    for name, count in (("train", 10), ("t10k", 5)):
        images = random.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder


def cifar10(root: Path) -> Path:
    """Two training batches of 4 images and a test batch of 3."""
    folder, random = _made(root / "cifar10"), np.random.default_rng(0)
    for name, count in (("data_batch_1", 4), ("data_batch_2", 4), ("test_batch", 3)):
        records = random.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def tiny_imagenet(root: Path) -> Path:
    """Two classes of 4 images, and 3 held out."""
    folder, random = _made(root / "tiny-imagenet"), np.random.default_rng(0)
    (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    held_out = [(f"val_{number}.JPEG", CLASSES[number % 2]) for number in range(3)]
    paths = [_made(folder / "train" / name / "images") / f"{name}_{n}.JPEG" for name in CLASSES for n in range(4)]
    paths += [_made(folder / "val" / "images") / name for name, _ in held_out]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    lines = "".join(f"{name}\t{kind}\t0\t0\t63\t63\n" for name, kind in held_out)
    (folder / "val" / "val_annotations.txt").write_text(lines)
    return folder


def wikitext2(root: Path) -> Path:
    """Six articles to train on, and two."""
    folder, random = _made(root / "wikitext-2"), np.random.default_rng(0)
    for name, count in (("train", 6), ("test", 2)):
        articles = [
            f" \n = Article {number} = \n \n {_sentence(random, 30)} \n \n = = Part = = \n \n {_sentence(random, 9)} \n"
            for number in range(count)
        ]
        (folder / f"wiki.{name}.tokens").write_text("".join(articles))
    return folder


def multi30k(root: Path) -> Path:
    """Ten pairs to train on, and three."""
    folder, random = _made(root / "multi30k"), np.random.default_rng(0)
    for name, count in (("train", 10), ("test_2016_flickr", 3)):
        for language in ("en", "de"):
            sentences = "".join(f"{_sentence(random, 5 + n)}\n" for n in range(count))
            (folder / f"{name}.{language}").write_text(sentences)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "mnist": mnist,
    "cifar10": cifar10,
    "tiny_imagenet": tiny_imagenet,
    "wikitext2": wikitext2,
    "multi30k": multi30k,
}
"""By the kind of the data set: writes it under a root, and gives its folder."""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sentence(random: np.random.Generator, words: int) -> str:
    return " ".join(random.choice(WORDS, words))

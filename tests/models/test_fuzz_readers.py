"""Bytes changed at random: readers give what they read or a DataError, and nothing else comes out."""

import gzip
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, idx
from PIL import Image

from models import DATA, DataError
from models.data.cifar10 import RECORD, read_records
from models.data.files import read_bytes, read_lines
from models.data.mnist import read_idx
from models.data.tiny_imagenet import decode_image

EXAMPLES = int(os.environ.get("GRADRANK_FUZZ_EXAMPLES", "150"))
"""For each reader; a few thousand take minutes."""

fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Edit = tuple[str, float, float, bytes]
EDITS: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "swap", "end"]),
        # Often near the beginning, where headers are.
        st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=8), st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\n", b"\t/"])
        ),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, edits: list[Edit]) -> bytes:
    """Flip bits, cut out, insert or swap bytes, or end early."""
    for way, where, length, new in edits:
        at = int(where * len(content))
        stop = at + 1 + int(length * 16)
        if way == "flip":
            flipped = bytes(byte ^ other for byte, other in zip(content[at : at + len(new)], new, strict=False))
            content = content[:at] + flipped + content[at + len(flipped) :]
        elif way == "cut":
            content = content[:at] + content[stop:]
        elif way == "insert":
            content = content[:at] + new + content[at:]
        elif way == "swap":
            content = content[:at] + content[stop : stop + 4] + content[at:stop] + content[stop + 4 :]
        else:
            content = content[:at]
    return content


def read_or_refuse(read: Callable[[], object], folder: Path) -> object:
    """What is read; None for a DataError, which must name a file of the folder."""
    try:
        return read()
    except DataError as error:
        told = str(error)
    assert str(folder) in told
    return None


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def written(place: Path, name: str, content: bytes) -> Path:
    path = place / name
    path.write_bytes(content)
    return path


IMAGES = idx(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))


@fuzzed
@given(EDITS)
@example([("insert", 0.0, 0.0, b"")])
def test_idx_files(place, edits):
    path = written(place, "images", mutated(IMAGES, edits))
    images = read_or_refuse(lambda: read_idx(path, axes=3), place)
    assert images is None or (images.ndim == 3 and images.size + 16 == path.stat().st_size)


@fuzzed
@given(st.one_of(st.binary(max_size=40), st.integers(0, 2).map(lambda n: bytes(RECORD * n))), EDITS)
def test_files_of_cifar10(place, content, edits):
    path = written(place, "batch.bin", mutated(content, edits) if len(content) < RECORD else content + edits[0][3])
    records = read_or_refuse(lambda: read_records(path), place)
    assert records is None or (records.shape[1] == RECORD and records[:, 0].max() < 10)


def _pictures() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[270] = "a picture"
    kinds = [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"exif": exif, "icc_profile": b"x" * 200, "dpi": (9, 9)}),
    ]
    contents = []
    for mode, options in [*kinds, ("L", {}), ("CMYK", {})]:
        content = io.BytesIO()
        noise.convert(mode).save(content, "JPEG", **options)
        contents.append(content.getvalue())
    content = io.BytesIO()
    noise.save(content, "MPO", save_all=True, append_images=[noise])
    return [*contents, content.getvalue()]


@pytest.mark.filterwarnings("ignore")  # PIL warns of some damage that it can read past
@fuzzed
@given(st.sampled_from(_pictures()), EDITS)
def test_pictures(place, content, edits):
    path = written(place, "picture.JPEG", mutated(content, edits))
    pixels = read_or_refuse(lambda: decode_image(path), place)
    assert pixels is None or (pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8)


@fuzzed
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@example(b"\n\n")
@example(b"one\0two\n")
@example("one\u2028two\r\nthree".encode())
def test_lines(place, content):
    path = written(place, "lines.txt", content)
    lines = read_or_refuse(lambda: read_lines(path), place)
    assert lines is None or "\n".join(lines).encode() in (content, content[:-1])


@fuzzed
@given(EDITS)
def test_gzip_files(place, edits):
    content = b"some text that is zipped\n" * 9
    written(place, "zipped.gz", mutated(gzip.compress(content, mtime=0), edits))
    found = read_or_refuse(lambda: read_bytes(place / "zipped"), place)
    assert found is None or content.startswith(found)


@pytest.fixture(scope="module")
def trees(place) -> dict[str, dict[Path, bytes]]:
    """The files of each tiny data set and their contents."""
    folders = {kind: write(place / kind) for kind, write in LAYOUTS.items()}
    return {
        kind: {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for kind, folder in folders.items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYOUTS)
def test_whole_loads(place, trees, monkeypatch, kind):
    @settings(fuzzed, max_examples=max(1, EXAMPLES // 3))
    @given(st.data())
    def load(data):
        path = data.draw(st.sampled_from(list(trees[kind])), label="file")
        path.write_bytes(mutated(trees[kind][path], data.draw(EDITS, label="edits")))
        held_out = data.draw(st.sampled_from(["official", "fold"]), label="held_out")
        with tempfile.TemporaryDirectory() as cache:
            monkeypatch.setenv("GRADRANK_CACHE", cache)
            config = DATA[kind](root=place / kind, held_out=held_out)
            try:
                dataset = read_or_refuse(lambda: config.load(0, 8), place)
                assert dataset is None or (len(dataset.train) > 0 and len(dataset.test) > 0)
            finally:
                path.write_bytes(trees[kind][path])

    load()


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.one_of(st.text(max_size=6), st.sampled_from(["val_0.JPEG", "..", "/", "val_0.JPEG/x", "\0", "x" * 300])),
            st.sampled_from(["\t", " ", ""]),
            st.one_of(st.text(max_size=4), st.sampled_from(["n01", "n02", ".", "../train/n01"])),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_lists_of_tiny_imagenet(place, trees, lines, of_classes):
    folder = place / "tiny_imagenet" / "tiny-imagenet"
    path = folder / ("wnids.txt" if of_classes else "val/val_annotations.txt")
    rows = (kind if of_classes else f"{name}{tab}{kind}\t0" for name, tab, kind in lines)
    path.write_bytes("\n".join(rows).encode())
    try:
        files = read_or_refuse(DATA["tiny_imagenet"](root=folder.parent).find, place)
        assert files is None or 1 <= files.classes <= 4
    finally:
        path.write_bytes(trees["tiny_imagenet"][path])

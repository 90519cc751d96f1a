"""Broken files of images: a DataError names the file and tells what is expected, and nothing else comes out."""

import io
import struct

import numpy as np
import pytest
from broken import UNREADABLE, change, put, refused, zipped
from layouts import LAYOUTS, idx
from PIL import Image

from models import DATA

TRAIN, LABELS, HELD_OUT = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
BATCH, WNIDS, ANNOTATIONS = "data_batch_1.bin", "wnids.txt", "val/val_annotations.txt"
PICTURE, SHOWN = "train/n01/images/n01_2.JPEG", "val/images/val_1.JPEG"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))


def header(*lengths: int) -> bytes:
    return bytes([0, 0, 8, len(lengths)]) + struct.pack(f">{len(lengths)}I", *lengths)


def picture(size=(64, 64), mode="RGB", form="JPEG") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, form)
    return content.getvalue()


IDX = {
    "an empty file": (put(TRAIN, b""), [TRAIN, "begins with nothing", "00000803"]),
    "another magic number": (change(TRAIN, lambda old: b"\x89PNG" + old[4:]), [TRAIN, "89504e47", "00000803"]),
    "labels where images belong": (put(TRAIN, idx(np.zeros(5, np.uint8))), [TRAIN, "00000801", "3 axes"]),
    "numbers of another type": (change(TRAIN, lambda old: b"\0\0\x0d\3" + old[4:]), [TRAIN, "00000d03"]),
    "a header cut short": (change(TRAIN, lambda old: old[:10]), [TRAIN, "10 of 16 bytes"]),
    "a file cut short": (change(TRAIN, lambda old: old[:-1]), [TRAIN, "holds 175 bytes", "10 × 4 × 4", "176"]),
    "bytes behind the images": (change(TRAIN, lambda old: old + b"\0"), [TRAIN, "holds 177 bytes", "176"]),
    "a header that overflows": (
        change(TRAIN, lambda old: header(*[2**32 - 1] * 3) + old[16:]),
        [TRAIN, "4294967295 × 4294967295 × 4294967295"],
    ),
    "a header that overflows to what is there": (
        change(TRAIN, lambda old: header(2**31, 2**31, 4) + old[16:16]),
        [TRAIN, "holds 16 bytes"],
    ),
    "no images": (put(TRAIN, header(0, 4, 4)), [TRAIN, "0 × 4 × 4"]),
    "images without pixels": (put(TRAIN, header(10, 0, 4)), [TRAIN, "10 × 0 × 4"]),
    "no images of a giant size": (put(TRAIN, header(0, 2**32 - 1, 2**32 - 1)), [TRAIN, "0 × 4294967295"]),
    "more labels than images": (put(LABELS, idx(np.zeros(11, np.uint8))), [LABELS, "11 labels for 10 images"]),
    "fewer labels than images": (put(LABELS, idx(np.zeros(9, np.uint8))), [LABELS, "9 labels for 10 images"]),
    "a label out of range": (put(LABELS, idx(np.full(10, 10, np.uint8))), [LABELS, "label 10", "0 to 9"]),
    "held-out images of another size": (
        put(HELD_OUT, idx(np.zeros((5, 4, 8), np.uint8))),
        ["mnist", "1 × 4 × 4", "1 × 4 × 8"],
    ),
    "a gzip file cut short": (zipped(TRAIN, lambda old: old[:-20]), [f"{TRAIN}.gz", "not a whole gzip file"]),
    "a gzip file without its end": (zipped(TRAIN, lambda old: old[:-8]), [f"{TRAIN}.gz", "not a whole gzip file"]),
    "a gzip file with another sum": (
        zipped(TRAIN, lambda old: old[:-8] + b"abcd" + old[-4:]),
        [f"{TRAIN}.gz", "not a whole gzip file"],
    ),
    "a gzip file with a broken middle": (
        zipped(TRAIN, lambda old: old[:30] + b"\xff" * 40 + old[70:]),
        [f"{TRAIN}.gz", "not a whole gzip file"],
    ),
    "what is no gzip file": (zipped(TRAIN, lambda old: b"<html>" + old), [f"{TRAIN}.gz", "not a whole gzip file"]),
    "an empty gzip file": (zipped(TRAIN, lambda old: b""), [TRAIN, "begins with nothing"]),
}


@pytest.mark.parametrize("case", IDX)
def test_a_broken_idx_file_is_named(tmp_path, case):
    spoil, words = IDX[case]
    spoil(LAYOUTS["mnist"](tmp_path))
    refused("mnist", tmp_path, *words)


CIFAR = {
    "an empty file": (put(BATCH, b""), [BATCH, "0 bytes", "3,073"]),
    "a file cut short": (change(BATCH, lambda old: old[:-1]), [BATCH, "12,291 bytes", "3,073"]),
    "bytes behind the images": (change(BATCH, lambda old: old + b"\0"), [BATCH, "12,293 bytes"]),
    "a class out of range": (change(BATCH, lambda old: b"\x0a" + old[1:]), [BATCH, "image 0 has class 10", "0 to 9"]),
    "a broken gzip file": (zipped(BATCH, lambda old: old[:-20]), [f"{BATCH}.gz", "not a whole gzip file"]),
    "no test batch": (UNREADABLE["missing"]("test_batch.bin"), ["test_batch.bin", "no such file"]),
    "no training batch": (
        lambda folder: [(folder / f"data_batch_{n}.bin").unlink() for n in (1, 2)],
        ["data_batch_1.bin", "nor any other"],
    ),
}


@pytest.mark.parametrize("case", CIFAR)
def test_a_broken_file_of_cifar10_is_named(tmp_path, case):
    spoil, words = CIFAR[case]
    spoil(LAYOUTS["cifar10"](tmp_path))
    refused("cifar10", tmp_path, *words)


NO_JPEG = "no JPEG that can be decoded"
PICTURES = {
    "garbage": (b"\x01\x02garbage" * 50, NO_JPEG),
    "nothing": (b"", NO_JPEG),
    "a beginning of a JPEG": (picture()[:20], NO_JPEG),
    "half of a JPEG's header": (picture()[:300], "cannot be read as a JPEG: Truncated File Read"),
    "a JPEG without its end": (picture()[:-40], "cannot be read as a JPEG: image file is truncated"),
    "a PNG": (picture(form="PNG"), NO_JPEG),
    "a wide picture": (picture((65, 64)), "64 × 65; 64 × 64 pixels are expected"),
    "a tiny picture": (picture((1, 1)), "1 × 1; 64 × 64 pixels are expected"),
    "a header of billions of pixels": (
        picture((7, 9)).replace(b"\0\x09\0\x07", b"\xff\xff\xff\xff"),
        NO_JPEG,
    ),
}


@pytest.mark.parametrize("file", [PICTURE, SHOWN])
@pytest.mark.parametrize("case", PICTURES)
def test_a_file_that_is_no_picture_as_expected_is_named(tmp_path, case, file):
    content, words = PICTURES[case]
    folder = LAYOUTS["tiny_imagenet"](tmp_path)
    put(file, content)(folder)
    refused("tiny_imagenet", tmp_path, folder / file, words)


@pytest.mark.parametrize(("mode", "value"), [("L", (255, 255, 255)), ("CMYK", (255, 255, 255)), ("RGB", (0, 0, 0))])
def test_grey_and_cmyk_pictures_become_rgb(tmp_path, mode, value):
    folder = LAYOUTS["tiny_imagenet"](tmp_path)
    blank = Image.new(mode, (64, 64), {"L": 255, "CMYK": (0, 0, 0, 0), "RGB": 0}[mode])
    blank.save(folder / "train/n01/images/n01_0.JPEG")
    train = DATA["tiny_imagenet"](root=tmp_path).load(0).train
    assert train.images.array[0].reshape(3, -1).min(1).tolist() == list(value)
    assert train.images.array[0].reshape(3, -1).max(1).tolist() == list(value)


TREE = {
    "a class without a folder": (put(WNIDS, "n01\nn03\n"), ["train/n03/images", "no such folder", "wnids.txt"]),
    "a class without images": (
        lambda folder: [path.unlink() for path in (folder / "train/n02/images").iterdir()],
        ["train/n02/images", "no JPEG files", "n02"],
    ),
    "a class twice": (put(WNIDS, "n01\nn02\nn01\n"), [WNIDS, "twice"]),
    "too many classes": (put(WNIDS, "".join(f"n{n}\n" for n in range(201))), [WNIDS, "201 classes", "at most 200"]),
    "a class outside": (put(WNIDS, "../../n01\n"), [WNIDS, "'../../n01'", "folder in train"]),
    "a class from the root": (put(WNIDS, "/etc\n"), [WNIDS, "'/etc'", "folder in train"]),
    "a class of dots": (put(WNIDS, "..\n"), [WNIDS, "'..'", "folder in train"]),
    "a class with a very long name": (put(WNIDS, "n" * 5000), ["nnn", "cannot be read"]),
    "no classes": (put(WNIDS, ""), [WNIDS, "no text"]),
    "classes of NUL bytes": (put(WNIDS, b"\0" * 90), [WNIDS, "NUL"]),
    "classes in UTF-16": (put(WNIDS, "n01\n".encode("utf-16")), [WNIDS, "not UTF-8"]),
    "no annotations": (put(ANNOTATIONS, "\n \n"), [ANNOTATIONS, "no text"]),
    "annotations without tabs": (put(ANNOTATIONS, "val_0.JPEG n01\n"), [ANNOTATIONS, "line 1", "a tab"]),
    "annotations of another class": (
        put(ANNOTATIONS, "val_0.JPEG\tn01\nval_1.JPEG\tn09\n"),
        [ANNOTATIONS, "line 2", "n09", "a class of wnids.txt"],
    ),
    "annotations of a missing file": (
        put(ANNOTATIONS, "val_9.JPEG\tn01\n"),
        ["val/images/val_9.JPEG", "no such file", "line 1 of val_annotations.txt"],
    ),
    "annotations of a file outside": (
        put(ANNOTATIONS, f"../../{PICTURE}\tn01\n"),
        [ANNOTATIONS, "line 1", "one in val/images is expected"],
    ),
    "annotations of a file from the root": (put(ANNOTATIONS, "/etc/passwd\tn01\n"), [ANNOTATIONS, "'/etc/passwd'"]),
    "annotations of no file": (put(ANNOTATIONS, "\tn01\n"), [ANNOTATIONS, "line 1", "''"]),
    "annotations of a very long name": (put(ANNOTATIONS, "n" * 5000 + "\tn01\n"), ["no such file", "line 1"]),
}


@pytest.mark.parametrize("case", TREE)
def test_a_broken_tree_of_tiny_imagenet_is_told(tmp_path, case):
    spoil, words = TREE[case]
    spoil(LAYOUTS["tiny_imagenet"](tmp_path))
    refused("tiny_imagenet", tmp_path, *words)


NEEDED = [
    ("mnist", TRAIN),
    ("mnist", "t10k-labels-idx1-ubyte"),
    ("cifar10", "test_batch.bin"),
    ("tiny_imagenet", WNIDS),
    ("tiny_imagenet", ANNOTATIONS),
    ("tiny_imagenet", SHOWN),
    ("wikitext2", "wiki.train.tokens"),
    ("wikitext2", "wiki.test.tokens"),
    ("multi30k", "train.de"),
    ("multi30k", "test_2016_flickr.en"),
]


@pytest.mark.parametrize(("kind", "file"), NEEDED)
@pytest.mark.parametrize("way", UNREADABLE)
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind, file, way):
    folder = LAYOUTS[kind](tmp_path)
    UNREADABLE[way](file)(folder)
    refused(kind, tmp_path, folder / file)


@pytest.mark.parametrize("way", [way for way in UNREADABLE if way != "missing"])
@pytest.mark.parametrize(("kind", "file"), [("cifar10", BATCH), ("tiny_imagenet", PICTURE)])
def test_a_file_that_may_be_missing_is_named_where_it_cannot_be_read(tmp_path, kind, file, way):
    folder = LAYOUTS[kind](tmp_path)
    UNREADABLE[way](file)(folder)
    refused(kind, tmp_path, folder / file)
    (folder / file).rmdir() if way == "a folder" else (folder / file).unlink()
    DATA[kind](root=tmp_path).load(0)


@pytest.mark.parametrize("way", UNREADABLE)
def test_a_class_folder_that_cannot_be_read_is_named(tmp_path, way):
    folder = LAYOUTS["tiny_imagenet"](tmp_path)
    (folder / "train" / "n02" / "images").rename(folder / "elsewhere")
    (folder / "train" / "n02" / "images").write_bytes(b"")
    UNREADABLE[way]("images")(folder / "train" / "n02")
    refused("tiny_imagenet", tmp_path, folder / "train/n02/images")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_root_without_the_data_set_is_told(tmp_path, kind, monkeypatch):
    refused(kind, tmp_path, tmp_path, "no such folder", f"gradrank data fetch {kind}")
    refused(kind, tmp_path / "nowhere", tmp_path / "nowhere", "data.root is no folder")
    (tmp_path / "file").write_text("")
    refused(kind, tmp_path / "file", tmp_path / "file", "data.root is no folder")
    refused(kind, tmp_path / ("n" * 5000), "cannot be read")
    monkeypatch.delenv("GRADRANK_DATA_ROOT", raising=False)
    refused(kind, None, "data.root is not set", "GRADRANK_DATA_ROOT")
    monkeypatch.setenv("GRADRANK_DATA_ROOT", str(tmp_path / "nowhere"))
    refused(kind, None, tmp_path / "nowhere", "data.root is no folder")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_tiny_layouts_load_while_nothing_is_broken(tmp_path, kind):
    LAYOUTS[kind](tmp_path)
    for held_out in ("official", "fold"):
        dataset = DATA[kind](root=tmp_path, held_out=held_out).load(0, 8)
        assert len(dataset.train) > 0
        assert len(dataset.test) > 0

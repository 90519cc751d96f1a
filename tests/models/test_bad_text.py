"""Broken files of text: a DataError names the file and tells what is expected, and nothing else comes out."""

import pytest
import torch
from broken import change, put, refused, zipped
from layouts import LAYOUTS

from models import DATA

WIKI, WIKI_OUT = "wiki.train.tokens", "wiki.test.tokens"
ENGLISH, GERMAN, SHOWN = "train.en", "train.de", "test_2016_flickr.de"

TEXT = {
    "an empty file": (put, b"", "holds no text; a line or more is expected"),
    "blank lines": (put, b"\n \n\t\n\n", "holds no text; a line or more is expected"),
    "Latin-1": (put, "Mädchen\n".encode("latin-1") * 10, "is not UTF-8 text, which is expected"),
    "UTF-16 with a mark": (put, ("girl\n" * 10).encode("utf-16"), "is not UTF-8 text, which is expected"),
    "UTF-16 without a mark": (put, ("girl\n" * 10).encode("utf-16-le"), "(NUL at character 1)"),
    "an end of NUL bytes": (change, lambda old: old[:20] + b"\0" * 100, "(NUL at character 20)"),
    "a letter cut in half": (change, lambda old: old + "ä".encode()[:1], "is not UTF-8 text, which is expected"),
    "a picture": (put, b"\xff\xd8\xff\xe0\0\x10JFIF", "is not UTF-8 text, which is expected (invalid start byte"),
    "a gzip file cut short": (zipped, lambda old: old[:-9], "is not a whole gzip file"),
    "a gzip file under the plain name": (put, b"\x1f\x8b\x08\0\0", "is not UTF-8 text, which is expected"),
    "an empty gzip file": (zipped, lambda old: b"", "holds no text"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "file"),
    [("wikitext2", WIKI), ("wikitext2", WIKI_OUT), ("multi30k", ENGLISH), ("multi30k", GERMAN), ("multi30k", SHOWN)],
)
@pytest.mark.parametrize("case", TEXT)
def test_a_file_that_is_no_text_is_named(tmp_path, kind, file, case):
    way, content, words = TEXT[case]
    folder = LAYOUTS[kind](tmp_path)
    way(file, content)(folder)
    refused(kind, tmp_path, folder / file, words)


PAIRS = {
    "a line more": (change(GERMAN, lambda old: old + b"mehr\n"), [GERMAN, "11 lines and train.en 10"]),
    "a line less": (change(SHOWN, lambda old: old[: old.rstrip().rindex(b"\n") + 1]), [SHOWN, "2 lines", "3"]),
    "an empty line": (change(ENGLISH, lambda old: b"\n" + old.partition(b"\n")[2]), [ENGLISH, "line 1 is empty"]),
    "an empty line in both": (
        lambda folder: [change(name, lambda old: b"a\n" + old + b"\t\n")(folder) for name in (ENGLISH, GERMAN)],
        [ENGLISH, "line 12 is empty", "a sentence is expected"],
    ),
    "empty lines at the end of one": (change(GERMAN, lambda old: old + b"\n"), [GERMAN, "11 lines"]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_files_that_are_not_parallel_are_told(tmp_path, case):
    spoil, words = PAIRS[case]
    spoil(LAYOUTS["multi30k"](tmp_path))
    refused("multi30k", tmp_path, *words)


def test_text_too_short_for_a_piece_is_told(tmp_path):
    folder = LAYOUTS["wikitext2"](tmp_path)
    refused("wikitext2", tmp_path, "sequence_length is 5000", "training text", folder, "not one piece", length=5000)
    put(WIKI_OUT, "one\n")(folder)
    refused("wikitext2", tmp_path, "sequence_length is 8", "held-out text", folder, length=8)


@pytest.mark.parametrize("objective", ["masked", "next"])
def test_text_of_exactly_one_piece_is_enough(tmp_path, objective):
    folder = LAYOUTS["wikitext2"](tmp_path)
    put(WIKI_OUT, "abcdefghi")(folder)
    data = DATA["wikitext2"](root=tmp_path, objective=objective, vocabulary=259)  # a token for each byte
    most = 10 if objective == "masked" else 9  # the line's end makes ten; the last predicts nothing
    assert len(data.load(0, most).test) == 1
    refused("wikitext2", tmp_path, "has 10 tokens", objective=objective, vocabulary=259, length=most + 1)


@pytest.mark.parametrize(
    ("kind", "file", "content"), [("wikitext2", WIKI, "no title\n" * 9), ("multi30k", ENGLISH, "a\nb\nc\n")]
)
def test_too_little_text_for_folds_is_told(tmp_path, kind, file, content):
    folder = LAYOUTS[kind](tmp_path)
    put(file, content)(folder)
    if kind == "multi30k":
        put(GERMAN, content)(folder)
    refused(kind, tmp_path, folder, "five-fold cross-validation takes 5 or more", held_out="fold")


@pytest.mark.parametrize("line", ["x" * 5000, "ab " * 100_000, "ö" * 5000, "\u200b" * 5000])
@pytest.mark.parametrize(("kind", "files"), [("wikitext2", [WIKI]), ("multi30k", [ENGLISH, GERMAN])])
def test_very_long_lines_are_read(tmp_path, kind, files, line):
    folder = LAYOUTS[kind](tmp_path)
    for file in files:
        change(file, lambda old: old + line.encode() + b"\n")(folder)
    train = DATA[kind](root=tmp_path, vocabulary=300).load(0, 16).train
    batch = train.take(torch.tensor([len(train) - 1]))
    assert all(tensor.shape == (1, 16) for tensor in (*batch.inputs, *batch.targets))

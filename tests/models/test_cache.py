"""What is made of data once: made by one process, whole or not at all, and anew where it was damaged."""

import multiprocessing
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from broken import change, refused, zipped
from layouts import LAYOUTS

from models import DATA, DataError, Dataset
from models.data.cache import cached

# Forked, since importing torch takes each process seconds, and these only write files.
PROCESSES = multiprocessing.get_context("fork")


def build(here: Path, pause_s: float) -> None:
    def make(folder: Path) -> None:
        (folder / "first").write_text("half")
        (here / f"made by {os.getpid()}").touch()
        time.sleep(pause_s)
        (folder / "second").write_text("whole")

    (here / f"ready {os.getpid()}").touch()
    wait_for(here, "go")
    folder = cached("entry", "key", make)
    (here / f"got by {os.getpid()}").write_text((folder / "first").read_text() + (folder / "second").read_text())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wait_for(folder: Path, pattern: str, count: int = 1) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"waited for {count} × {pattern}"
        time.sleep(0.01)


def fill(folder: Path) -> None:
    (folder / "first").write_text("by the test")


def load(kind: str, root: Path, **settings: object) -> Dataset:
    return DATA[kind](root=root, **settings).load(0, 8)


def taken(dataset: Dataset) -> list[torch.Tensor]:
    batches = [part.take(torch.arange(len(part))) for part in (dataset.train, dataset.test)]
    return [tensor for batch in batches for tensor in (*batch.inputs, *batch.targets)]


def same(one: Dataset, other: Dataset) -> bool:
    return one.digest == other.digest and all(map(torch.equal, taken(one), taken(other)))


def files_of(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*/*") if path.is_file())


def stamps(cache: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in files_of(cache)]


def test_processes_that_want_an_entry_at_once_make_it_once(tmp_path):
    processes = [PROCESSES.Process(target=build, args=(tmp_path, 0.3)) for _ in range(4)]
    for process in processes:
        process.start()
    wait_for(tmp_path, "ready *", 4)
    (tmp_path / "go").touch()
    for process in processes:
        process.join(60)
    assert [path.read_text() for path in tmp_path.glob("got by *")] == ["halfwhole"] * 4
    assert len(list(tmp_path.glob("made by *"))) == 1


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path, cache):
    (tmp_path / "go").touch()
    process = PROCESSES.Process(target=build, args=(tmp_path, 60))
    process.start()
    wait_for(tmp_path, "made by *")
    assert len(list(cache.glob("*unfinished*/first"))) == 1
    process.kill()
    process.join(60)
    folder = cached("entry", "key", fill)
    assert sorted(path.name for path in folder.iterdir()) == ["first", "sizes"]
    assert (folder / "first").read_text() == "by the test"
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_an_entry_whose_making_fails_is_not_there(cache):
    def fail(folder: Path) -> None:
        fill(folder)
        raise DataError("no such data")

    with pytest.raises(DataError, match="no such data"):
        cached("entry", "key", fail)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert (cached("entry", "key", fill) / "first").read_text() == "by the test"


def test_other_keys_have_other_entries():
    assert len({cached(name, key, fill) for name in ("a", "b") for key in ("k", ("k", None), ("k", 8))}) == 6


@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut short", "grown", "all deleted"])
@pytest.mark.parametrize("kind", ["mnist", "multi30k"])
def test_a_damaged_entry_is_made_anew(tmp_path, cache, kind, damage):
    LAYOUTS[kind](tmp_path)
    whole = load(kind, tmp_path)
    contents = {path: path.read_bytes() for path in files_of(cache)}
    for path, content in contents.items():
        if damage in ("deleted", "all deleted"):
            path.unlink()
        else:
            path.write_bytes({"emptied": b"", "cut short": content[:-1], "grown": content + b"\0"}[damage])
        if damage != "all deleted":
            assert same(load(kind, tmp_path), whole), path
            assert path.read_bytes() == content
    assert same(load(kind, tmp_path), whole)
    assert {path: path.read_bytes() for path in files_of(cache)} == contents


@pytest.mark.parametrize("damage", ["deleted", "cut short", "emptied", "garbage", "a folder"])
def test_damage_after_loading_is_told_with_the_folder_to_delete(tmp_path, cache, damage):
    LAYOUTS["wikitext2"](tmp_path)
    train = pickle.loads(pickle.dumps(load("wikitext2", tmp_path).train))  # as another process has it
    (path,) = cache.glob("*/train.npy")
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "deleted":
        path.write_bytes({"cut short": content[:-1], "emptied": b"", "garbage": b"x" * len(content)}[damage])
    with pytest.raises(
        DataError, match=f"{path}: cannot be read from the cache .*delete {path.parent}, and it is made"
    ):
        train.take(torch.tensor([0]))


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("wikitext2", "wikitext2-*/tokenizer.json", b"x"),
        ("wikitext2", "wikitext2-*/tokenizer.json", b"\xff"),
        ("mnist", "mnist-training-*/digest", b"\xff"),
        ("mnist", "mnist-training-*/moments.npy", b"x"),
    ],
)
def test_damage_that_keeps_the_length_is_told_where_it_is_noticed(tmp_path, cache, kind, file, content):
    LAYOUTS[kind](tmp_path)
    load(kind, tmp_path)
    (path,) = cache.glob(file)
    path.write_bytes(content * path.stat().st_size)
    refused(kind, tmp_path, path, "cannot be read from the cache", f"delete {path.parent}")


@pytest.mark.parametrize("way", ["a file", "in a file", "a broken link", "a link to itself", "a very long name"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, cache, way):
    LAYOUTS["mnist"](tmp_path)
    place = {"in a file": cache / "deeper", "a very long name": tmp_path / ("n" * 5000)}.get(way, cache)
    monkeypatch.setenv("GRADRANK_CACHE", str(place))
    if "file" in way:
        cache.write_text("")
    elif "link" in way:
        cache.symlink_to(cache if "itself" in way else "/dev/null/nowhere")
    refused("mnist", tmp_path, place, "the cache cannot be written", "export GRADRANK_CACHE=FOLDER")


def test_a_file_in_the_place_of_an_entry_is_told(tmp_path, cache):
    LAYOUTS["mnist"](tmp_path)
    load("mnist", tmp_path)
    (entry,) = cache.glob("mnist-training-*[!.lock]")
    entry.rename(tmp_path / "elsewhere")
    entry.write_text("")
    refused("mnist", tmp_path, entry, "the cache cannot be written")


def test_an_entry_is_as_readable_as_the_cache(cache):
    for mode in (0o700, 0o755):
        cache.mkdir(exist_ok=True)
        cache.chmod(mode)
        assert cached("entry", mode, fill).stat().st_mode & 0o777 == mode


def test_a_relative_cache_is_found_from_other_folders(tmp_path, monkeypatch):
    LAYOUTS["mnist"](tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADRANK_CACHE", "near")
    train = pickle.loads(pickle.dumps(load("mnist", tmp_path).train))
    monkeypatch.chdir("/")
    assert len(train) == 10


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_second_load_makes_nothing(tmp_path, cache, kind):
    LAYOUTS[kind](tmp_path)
    first, before = load(kind, tmp_path), stamps(cache)
    assert same(load(kind, tmp_path), first)
    assert stamps(cache) == before


def test_a_second_load_decodes_no_pictures(tmp_path):
    folder = LAYOUTS["tiny_imagenet"](tmp_path)
    first = load("tiny_imagenet", tmp_path)
    for path in folder.glob("**/*.JPEG"):
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(load("tiny_imagenet", tmp_path), first)
    os.utime(path)
    refused("tiny_imagenet", tmp_path, "no JPEG that can be decoded")


@pytest.mark.parametrize(
    ("kind", "file"),
    [("mnist", "train-images-idx3-ubyte"), ("cifar10", "data_batch_2.bin"), ("wikitext2", "wiki.train.tokens")]
    + [("multi30k", "test_2016_flickr.de")],
)
def test_digests_are_of_contents_zipped_or_not(tmp_path, kind, file):
    folder = LAYOUTS[kind](tmp_path)
    plain = load(kind, tmp_path)
    zipped(file)(folder)
    assert same(load(kind, tmp_path), plain)
    (folder / f"{file}.gz").rename(folder / "spare")
    LAYOUTS[kind](tmp_path)
    change(file, lambda old: old[:-2] + bytes([old[-2] ^ 1]) + old[-1:])(folder)
    assert load(kind, tmp_path).digest != plain.digest


def test_text_that_moves_to_the_next_file_is_seen(tmp_path):
    folder = LAYOUTS["wikitext2"](tmp_path)
    before = load("wikitext2", tmp_path)
    train, test = ((folder / f"wiki.{name}.tokens").read_bytes() for name in ("train", "test"))
    (folder / "wiki.train.tokens").write_bytes(train[:-300])
    (folder / "wiki.test.tokens").write_bytes(train[-300:] + test)
    after = load("wikitext2", tmp_path)
    assert after.digest != before.digest
    assert len(after.test) > len(before.test)


@pytest.mark.parametrize(
    ("kind", "files"),
    [("cifar10", ["data_batch_1.bin"]), ("wikitext2", ["wiki.train.tokens"]), ("multi30k", ["train.en", "train.de"])],
)
def test_much_data_travels_as_small_as_little(tmp_path, kind, files):
    folder, sizes = LAYOUTS[kind](tmp_path), []
    for times in (1, 200):
        for file in files:
            change(file, lambda old, times=times: old * times)(folder)
        dataset = load(kind, tmp_path)
        taken(dataset)  # so that arrays are mapped
        sent = pickle.dumps(dataset)
        assert same(pickle.loads(sent), dataset)
        sizes.append(len(sent))
    assert sizes[1] < sizes[0] + 50  # the notes tell more digits

"""`gradrank data`: what is there is told, and what is fetched is the public files byte for byte."""

import gzip
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from hub import serving
from PIL import Image

import models
from launch.cli import main
from models.data import cifar10, mnist
from models.data.cache import cache_root
from models.data.fetching import SOURCES, Outcome, fetch
from models.data.fetching.tree import TreeSource
from models.data.files import named_root, read_bytes

ROOT = Path(__file__).parents[2]
LABELS = datasets.ClassLabel(names=[str(number) for number in range(10)])
T10K_ROWS = 10_000


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def run_with_hub(url: str, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, since the hub's address is read when its client is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_HOME": str(home), **variables}
    command = [sys.executable, "-m", "launch", "data", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def png(pixels: np.ndarray) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return {"bytes": file.getvalue(), "path": None}


def rows_of(images: Sequence[object], labels: Sequence[int], image: str, classes=LABELS) -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), "label": classes})
    return datasets.Dataset.from_dict({image: list(images), "label": list(labels)}, features=features)


def parquet(rows: datasets.Dataset) -> bytes:
    file = io.BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


def digits(count: int = 3) -> datasets.Dataset:
    images = [png(np.full((28, 28), number, dtype=np.uint8)) for number in range(count)]
    return rows_of(images, [number % 10 for number in range(count)], "image")


def t10k(data_root: Path) -> datasets.Dataset:
    folder = data_root / mnist.FOLDERS[0]
    images, labels = (mnist.read_idx(folder / name, axes) for name, axes in zip(mnist.HELD_OUT, (3, 1), strict=True))
    return rows_of([png(image) for image in images], labels.tolist(), "image")


def unpacked(data_root: Path, root: Path, source: str, *names: str) -> Path:
    """Put real files into a root, unpacked."""
    folder = root / SOURCES[source].folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(read_bytes(SOURCES[source].folder(data_root) / name))
    return folder


def untold(what: str, done: int, of: int) -> None:
    pass


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_list_tells_what_is_there_and_what_is_not(capsys, tmp_path):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    (folder / "wiki.train.tokens").write_text("one line\n")
    raw = tmp_path / "mnist/MNIST/raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(10_008)))
    code, out, _ = run(capsys, "data", "list", "--root", str(tmp_path))
    assert code == 0
    assert str(tmp_path) in out
    for name, source in SOURCES.items():
        assert name in out
        assert source.repository in out
    assert "wiki.train.tokens holds 1 lines; 36,718 are expected" in " ".join(out.split())
    mnist_row = out[out.index("mnist") : out.index("cifar10")]
    assert "train-images-idx3-ubyte" in mnist_row
    assert "t10k-labels" not in mnist_row
    assert out.count("nothing") == 4


def test_folders_that_the_environment_names_may_begin_with_the_home_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GRADRANK_DATA_ROOT", "~/data")
    monkeypatch.setenv("GRADRANK_CACHE", "~/cache")
    assert (named_root(None), cache_root()) == (tmp_path / "data", tmp_path / "cache")
    monkeypatch.setenv("GRADRANK_DATA_ROOT", "~nobody-of-this-name/data")
    code, _, err = run(capsys, "data", "list")
    assert code == 2
    assert "nobody-of-this-name" in err


def test_without_a_root_the_list_says_so_and_a_fetch_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("GRADRANK_DATA_ROOT", raising=False)
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    assert "root: none is set" in out
    code, _, err = run(capsys, "data", "fetch", "mnist")
    assert code == 2
    assert "--root FOLDER or export GRADRANK_DATA_ROOT=FOLDER" in err


@pytest.mark.parametrize(
    ("name", "word"), [("mnits", "did you mean 'mnist'"), ("digits", "no files to fetch"), ("x", "cifar10")]
)
def test_a_name_that_cannot_be_fetched_is_refused(capsys, tmp_path, name, word):
    code, _, err = run(capsys, "data", "fetch", name, "--root", str(tmp_path))
    assert code == 2
    assert word in err
    assert files_under(tmp_path) == []


def test_without_a_network_the_error_comes_soon_and_says_which_files_go_where(tmp_path):
    with serving({}) as hub:
        url = hub.url
    root = tmp_path / "data"
    done = run_with_hub(url, tmp_path, "fetch", "mnist", "--root", str(root))
    assert done.returncode == 2
    assert "Retrying" not in done.stderr  # as the hub's client would, for half a minute
    assert "Traceback" not in done.stderr
    assert f"{url} cannot be reached" in done.stderr
    assert f"{root}/mnist/MNIST/raw: train-images-idx3-ubyte, " in done.stderr
    assert not root.exists()


def test_a_hub_that_has_something_else_is_refused_and_nothing_is_left(tmp_path):
    files = {
        f"mnist/{split}-00000-of-00001.parquet": parquet(digits(count)) for split, count in (("train", 3), ("test", 2))
    }
    with serving({"ylecun/mnist": files}) as hub:
        done = run_with_hub(hub.url, tmp_path / "home", "fetch", "mnist", "--root", str(tmp_path / "data"))
    assert done.returncode == 2
    assert "holds 2,368 bytes; 47,040,016 are expected" in done.stderr
    assert files_under(tmp_path / "data") == []


def test_a_fetch_goes_on_where_the_last_one_ended(capsys, data_root, tmp_path):
    home, root = tmp_path / "home", tmp_path / "data"
    folder = unpacked(data_root, root, "mnist", *mnist.TRAIN)
    train, test = (f"mnist/{split}-00000-of-00001.parquet" for split in ("train", "test"))
    with serving({"ylecun/mnist": {train: parquet(digits()), test: parquet(t10k(data_root))}}) as hub:
        hub.refused = {test}
        done = run_with_hub(hub.url, home, "fetch", "mnist", "--root", str(root))
        assert done.returncode == 2
        assert "the same command goes on" in done.stderr
        assert files_under(folder) == sorted(mnist.TRAIN)
        hub.refused = set()
        done = run_with_hub(hub.url, home, "fetch", "mnist", "--root", str(root))
        assert done.returncode == 0, done.stderr
        assert hub.asked == {train: 1, test: 1}
    assert f"written: {', '.join(mnist.HELD_OUT)}" in done.stdout
    assert f"kept: {', '.join(mnist.TRAIN)}" in done.stdout
    for name in mnist.HELD_OUT:
        assert (folder / name).read_bytes() == read_bytes(SOURCES["mnist"].folder(data_root) / name)
    assert len(models.MNIST(root=root).load(0).test) == T10K_ROWS

    # What is there needs no hub; what is lost again is in its client's cache.
    code, out, _ = run(capsys, "data", "fetch", "mnist", "--root", str(root))
    assert code == 0
    assert "written" not in out
    (folder / mnist.HELD_OUT[1]).unlink()
    done = run_with_hub(hub.url, home, "fetch", "mnist", "--root", str(root), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert f"written: {mnist.HELD_OUT[1]}\n" in done.stdout


def test_multi30k_comes_from_the_hub_as_it_is_published(data_root, tmp_path):
    folder, files = data_root / "multi30k/data/task1/raw", {}
    for name, split in (("train", "train"), ("val", "val"), ("test_2016_flickr", "test")):
        pairs = zip(
            *(read_bytes(folder / f"{name}.{code}").decode().split("\n")[:-1] for code in ("en", "de")), strict=True
        )
        table = datasets.Dataset.from_list([{"en": english, "de": german} for english, german in pairs])
        lines = io.BytesIO()
        table.to_json(lines)
        files[f"{split}.jsonl"] = lines.getvalue()
    with serving({"bentrevett/multi30k": files}) as hub:
        done = run_with_hub(hub.url, tmp_path / "home", "fetch", "multi30k", "--root", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    written = tmp_path / "data/multi30k/data/task1/raw"
    assert sorted(files_under(written)) == sorted(SOURCES["multi30k"].parts)
    for name in SOURCES["multi30k"].parts:
        assert (written / name).read_bytes() == read_bytes(folder / name)


def test_what_was_written_before_a_fetch_broke_off_is_kept(data_root, tmp_path):
    folder = unpacked(data_root, tmp_path, "mnist", *mnist.TRAIN)
    right = t10k(data_root)
    labels = right["label"]
    wrong = right.remove_columns("label").add_column("label", [9 - labels[0], *labels[1:]])
    with pytest.raises(models.DataError, match=r"t10k-labels-idx1-ubyte: not written, .* has MD5 \w+; 27ae3e4e0951"):
        fetch(SOURCES["mnist"], folder, lambda: {"train": digits(), "test": wrong}, untold)
    assert files_under(folder) == sorted([*mnist.TRAIN, mnist.HELD_OUT[0]])
    outcome = fetch(SOURCES["mnist"], folder, lambda: {"train": digits(), "test": right}, untold)
    assert outcome == Outcome(written=(mnist.HELD_OUT[1],), kept=(*mnist.TRAIN, mnist.HELD_OUT[0]))
    # By force all is written, and what is right stays where that fails.
    with pytest.raises(models.DataError, match="train-images-idx3-ubyte"):
        fetch(SOURCES["mnist"], folder, lambda: {"train": digits(), "test": right}, untold, anew=True)
    assert SOURCES["mnist"].faults(folder, thorough=True) == {}


def test_batches_of_cifar10_get_their_names_in_whatever_order_they_come(data_root, tmp_path):
    source, folder = SOURCES["cifar10"], tmp_path / "cifar10/cifar-10-batches-bin"
    published = source.folder(data_root)
    rows = {}
    for name in ("test_batch.bin", "data_batch_1.bin"):
        records = cifar10.read_records(published / name)
        images = records[:, 1:].reshape(-1, *cifar10.SHAPE).transpose(0, 2, 3, 1)
        rows[name] = rows_of([png(image) for image in images], records[:, 0].tolist(), "img")
    both = datasets.concatenate_datasets(list(rows.values()))
    with pytest.raises(models.DataError, match=r"data_batch_2.bin: missing, after all was fetched"):
        fetch(source, folder, lambda: {"train": both, "test": rows["test_batch.bin"]}, untold)
    assert files_under(folder) == sorted(rows)
    for name in rows:
        assert (folder / name).read_bytes() == (published / name).read_bytes()
    data = models.CIFAR10(root=tmp_path).load(0)
    assert (len(data.train), len(data.test)) == (10_000, 10_000)
    with pytest.raises(models.DataError, match=r"images 0 to 4 of 'train', .* have MD5 "):
        fetch(source, folder, lambda: {"train": both.select(range(5)), "test": both}, untold)


def test_blank_lines_of_wikitext_are_as_in_its_files(data_root, tmp_path):
    source, folder = SOURCES["wikitext2"], tmp_path / "wikitext-2"
    names = {"wiki.train.tokens": "train", "wiki.valid.tokens": "validation", "wiki.test.tokens": "test"}
    splits = {}
    for name, split in names.items():
        lines = read_bytes(data_root / "wikitext-2" / name).decode().removesuffix("\n").split("\n")
        texts = [f"{line}\n" if line.strip() else "" for line in lines]  # as the hub has them
        splits[split] = datasets.Dataset.from_dict({"text": texts})
    # Of the training text a part is at hand; blank lines make it as long as it should be.
    texts = splits["train"]["text"][:100]
    splits["train"] = datasets.Dataset.from_dict({"text": [*texts, *[""] * (36_718 - len(texts))]})
    assert fetch(source, folder, lambda: splits, untold).kept == ()
    for name in ("wiki.valid.tokens", "wiki.test.tokens"):
        assert (folder / name).read_bytes() == (data_root / "wikitext-2" / name).read_bytes()
    published = (data_root / "wikitext-2/wiki.train.tokens").read_bytes().split(b"\n")
    assert (folder / "wiki.train.tokens").read_bytes().split(b"\n")[:100] == published[:100]
    assert len(models.WikiText2(root=tmp_path, vocabulary=300).load(0, length=64).test) > 0


def small_tree(data_root: Path) -> tuple[TreeSource, Path, dict[str, datasets.Dataset]]:
    """Two classes of four images, and three of what is held out, as the hub would have them."""
    whole = data_root / "tiny-imagenet/tiny-imagenet-200"
    names = sorted((whole / "wnids.txt").read_text().split())[:2]
    train = [sorted((whole / "train" / name / "images").iterdir())[:4] for name in names]
    held_out = sorted((whole / "val/images").iterdir())[:3]

    def rows(paths: Sequence[Path], labels: Sequence[int]) -> datasets.Dataset:
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        return rows_of(images, labels, "image", datasets.ClassLabel(names=names))

    splits = {"train": rows([*train[0], *train[1]], [0] * 4 + [1] * 4), "valid": rows(held_out, [1, 0, 1])}
    source = TreeSource(
        name="tiny_imagenet",
        repository="zh-plus/tiny-imagenet",
        folders=SOURCES["tiny_imagenet"].folders,
        classes=2,
        train_images=8,
        held_out_images=3,
    )
    return source, train[1][2], splits


def test_jpegs_of_tiny_imagenet_are_written_as_they_are_stored(data_root, tmp_path):
    source, third, splits = small_tree(data_root)
    folder = source.folder(tmp_path)
    assert fetch(source, folder, lambda: splits, untold).kept == ()
    name = third.parent.parent.name
    assert (folder / "train" / name / "images" / f"{name}_2.JPEG").read_bytes() == third.read_bytes()
    data = models.TinyImageNet(root=tmp_path).load(0)
    assert (len(data.train), len(data.test)) == (8, 3)
    assert data.test.labels.tolist() == [1, 0, 1]

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*_*.JPEG")}
    (folder / "train" / name / "images" / f"{name}_2.JPEG").unlink()
    shutil.rmtree(folder / "val")
    assert fetch(source, folder, lambda: splits, untold).written == ("train", "val")
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("*_*.JPEG")}
    changed = {path.name for path in again if again[path] != before[path]}
    assert changed == {f"{name}_2.JPEG", "val_0.JPEG", "val_1.JPEG", "val_2.JPEG"}


def test_classes_that_are_no_folder_names_are_refused(data_root, tmp_path):
    source, _, splits = small_tree(data_root)
    outside = datasets.ClassLabel(names=["n00000000", "../../outside"])
    splits["train"] = splits["train"].cast_column("label", outside)
    with pytest.raises(models.DataError, match=r"'../../outside'; 2 named as in WordNet"):
        fetch(source, tmp_path / "data", lambda: splits, untold)
    assert files_under(tmp_path) == []


def test_a_root_that_is_a_file_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, told = run(capsys, "data", "list", "--root", str(tmp_path / "file"))
    assert (code, told.split(";")[0]) == (2, f"gradrank: data list: {tmp_path / 'file'} is no folder")


def test_the_root_of_the_environment_may_be_relative_or_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in ("~/sets", "sets"):
        monkeypatch.setenv("GRADRANK_DATA_ROOT", given)
        assert named_root(None) == tmp_path / "sets"

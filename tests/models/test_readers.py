"""The readers on the real files: known facts, what they give, folds, masking, tokens back to text."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from models import DATA, Dataset
from models.data.cache import MappedArray
from models.data.files import read_bytes, read_lines
from models.data.text import MASK, PAD, SEPARATOR, SPECIAL, masked
from models.data.wikitext import _articles
from models.tasks import NOT_PREDICTED

pytestmark = pytest.mark.usefixtures("data_root")

SIZES = {
    "mnist": (60_000, 10_000, (1, 28, 28), ()),
    "cifar10": (10_000, 10_000, (3, 32, 32), ("10,000 of 50,000 training images",)),
    "tiny_imagenet": (
        5_000,
        500,
        (3, 64, 64),
        ("5,000 of 100,000 training images", "500 of 10,000 held-out images", "10 of 200 classes"),
    ),
    "multi30k": (29_000, 1_000, (40,), ()),
}
"""Training samples, held-out ones, shape, notes; partial where the files here are."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Path:
    """A cache of this module alone, so that all is made from the files once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADRANK_CACHE", str(folder))
        yield folder


def load(kind: str, fold: int = 0, length: int = 40, **settings: object) -> Dataset:
    root = Path(os.environ["GRADRANK_DATA_ROOT"])
    config = DATA[kind](root=root, **settings)
    if kind == "cifar10" and (root / "cifar10/cifar-10-batches-bin/data_batch_2.bin").exists():
        pytest.skip("all of CIFAR-10 is there")
    return config.load(fold, length)


def labels(kind: str, part: str) -> Tensor:
    return getattr(load(kind), part).labels


def tokeniser_of(ids: MappedArray) -> Tokenizer:
    """The one that made these ids, which lies beside them in the cache."""
    return Tokenizer.from_file(str(Path(ids.array.filename).with_name("tokenizer.json")))


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_shapes_and_notes_are_as_known(kind):
    dataset = load(kind)
    train, held_out, shape, notes = SIZES[kind]
    assert (len(dataset.train), len(dataset.test)) == (train, held_out)
    assert dataset.signature.shape == shape
    assert dataset.notes == notes
    for part in (dataset.train, dataset.test):
        batch = part.take(torch.tensor([0, len(part) - 1]))
        assert all(tensor.shape[1:] == shape for tensor in batch.inputs)


def test_mnist_has_its_labels():
    train, test = labels("mnist", "train"), labels("mnist", "test")
    assert train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert test[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]


def test_mnist_images_stand_upright():
    (image,) = load("mnist").train.take(torch.tensor([3])).inputs  # a one: a stroke, higher than it is wide
    ink = image[0, 0] > 0
    assert ink.any(1).sum() > ink.any(0).sum()
    assert not ink[0].any()


def test_held_out_cifar10_has_a_thousand_of_each_class():
    assert labels("cifar10", "test").bincount().tolist() == [1000] * 10
    assert labels("cifar10", "train").bincount().tolist() == [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]


def test_tiny_imagenet_has_as_many_of_each_class_in_the_order_of_its_list():
    assert labels("tiny_imagenet", "train").bincount().tolist() == [500] * 10
    assert labels("tiny_imagenet", "test").bincount().tolist() == [50] * 10
    folder = Path(load("tiny_imagenet").source.split(" in ", 1)[1])
    first = read_lines(folder / "wnids.txt")[0]
    picture = min((folder / "train" / first / "images").iterdir())
    expected = np.asarray(Image.open(picture).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load("tiny_imagenet").train.images.array[0], expected)


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "tiny_imagenet"])
def test_images_have_mean_0_and_deviation_1_in_each_channel(kind):
    for held_out in ("official", "fold"):
        (images,) = load(kind, held_out=held_out).train.take(torch.arange(0, 4000)).inputs
        assert images.mean((0, 2, 3)).abs().max() < 0.05
        assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_mean_and_deviation_are_those_of_all_training_images():
    train = load("cifar10").train
    for channel in range(3):
        pixels = train.images.array[:, channel].astype(np.float64)
        assert train.mean[channel] == pytest.approx(pixels.mean(), abs=1e-6)
        assert train.deviation[channel] == pytest.approx(pixels.std(), abs=1e-6)


def test_resized_images_are_those_of_pil():
    size = 20
    small, own = load("tiny_imagenet", image_size=size).test, load("tiny_imagenet").test
    assert small.images.array.shape == (500, 3, size, size)
    for number in (0, 499):
        picture = Image.fromarray(own.images.array[number].transpose(1, 2, 0))
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(small.images.array[number], expected)


@pytest.mark.parametrize(("name", "articles"), [("test", 60), ("valid", 60), ("train", 155)])
def test_wikitext_is_cut_where_articles_begin(name, articles):
    path = Path(os.environ["GRADRANK_DATA_ROOT"]) / "wikitext-2" / f"wiki.{name}.tokens"
    found = _articles(path)
    assert len(found) == articles
    assert "".join("".join(article) for article in found).encode() == read_bytes(path)
    assert all(sum(line.startswith(" = ") and line[3] != "=" for line in article) >= 1 for article in found)


def test_a_text_decodes_back():
    dataset = load("wikitext2")
    assert dataset.notes == ("9,742 of 36,718 training lines",)
    tokeniser = tokeniser_of(dataset.train.ids)
    root = Path(os.environ["GRADRANK_DATA_ROOT"]) / "wikitext-2"
    for part, name in ((dataset.train, "train"), (dataset.test, "test")):
        text = read_bytes(root / f"wiki.{name}.tokens").decode()
        assert tokeniser.decode(part.ids[:], skip_special_tokens=False) == text
        assert len(part) == len(part.ids) // 40


def test_pieces_follow_one_another_and_the_next_token_is_the_target():
    dataset = load("wikitext2", objective="next")
    batch = dataset.train.take(torch.arange(3))
    ids = torch.from_numpy(np.array(dataset.train.ids[:121])).long()
    assert torch.equal(batch.inputs[0].flatten(), ids[:120])
    assert torch.equal(batch.targets[0].flatten(), ids[1:])


def test_tokens_are_masked_as_bert_has_it():
    ids = torch.from_numpy(np.array(load("wikitext2").train.ids[: 2000 * 64])).long().reshape(2000, 64)
    chosen, hidden = masked(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(2000), 0, 4096)
    assert chosen.sum(1).tolist() == [10] * 2000  # 15 % of 64
    assert torch.equal(hidden[~chosen], ids[~chosen])
    masks, kept = hidden[chosen] == MASK, hidden[chosen] == ids[chosen]
    assert masks.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)
    others = hidden[chosen][~masks & ~kept]
    assert others.min() >= len(SPECIAL)
    assert others.unique().numel() > 1000
    # Each position is as likely to be chosen.
    assert (chosen.float().mean(0) - 10 / 64).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["wikitext2", "multi30k"])
def test_what_is_masked_depends_on_seed_and_sample_alone(kind):
    train = load(kind).train
    one, many = train.take(torch.tensor([7]), 5), train.take(torch.tensor([3, 7, 11]), 5)
    for alone, among in zip((*one.inputs, *one.targets), (*many.inputs, *many.targets), strict=True):
        assert torch.equal(alone[0], among[1])
    assert not torch.equal(one.inputs[0], train.take(torch.tensor([7]), 6).inputs[0])


def restored(ids: Tensor, targets: Tensor) -> Tensor:
    """What stood there before it was masked."""
    return torch.where(targets == NOT_PREDICTED, ids, targets)


def test_a_pair_decodes_back_to_its_sentences():
    folder = Path(os.environ["GRADRANK_DATA_ROOT"]) / "multi30k/data/task1/raw"
    train = load("multi30k", length=256).train
    tokeniser = tokeniser_of(train.ids[0])
    numbers = torch.tensor([0, 1, 14_000, 28_999])
    batch = train.take(numbers)
    ids, attention, languages, positions = batch.inputs
    whole = restored(ids, batch.targets[0])
    for row, number in enumerate(numbers.tolist()):
        for language, name in enumerate(("en", "de")):
            own = (languages[row] == language) & (attention[row] == 1)
            tokens = whole[row][own]
            assert tokens[0] == tokens[-1] == SEPARATOR
            assert tokeniser.decode(tokens[1:-1].tolist()) == read_lines(folder / f"train.{name}")[number]
            assert positions[row][own].tolist() == list(range(len(tokens)))
    assert torch.equal(whole == PAD, attention == 0)


def test_special_tokens_are_never_chosen_and_pairs_too_long_are_cut_evenly():
    length, numbers = 24, torch.arange(500)
    short, full = load("multi30k", length=length).train, load("multi30k", length=256).train
    batch, whole = short.take(numbers), full.take(numbers)
    assert not torch.isin(batch.targets[0], torch.arange(len(SPECIAL))).any()
    assert ((batch.targets[0] != NOT_PREDICTED).sum(1) >= 1).all()
    for row in range(len(numbers)):
        counts, uncut = (
            [int(((languages[row] == language) & (attention[row] == 1)).sum()) - 2 for language in (0, 1)]
            for _, attention, languages, _ in (batch.inputs, whole.inputs)
        )
        room = length - 4
        if sum(uncut) <= room:
            assert counts == uncut
        else:
            assert sum(counts) == room
            assert counts[0] == counts[1] or min(counts) == min(uncut)


def test_a_tokeniser_trained_twice_is_the_same(tmp_path, monkeypatch):
    first = load("multi30k", length=20)
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path))
    second = load("multi30k", length=20)
    assert first.digest == second.digest
    assert len(list(tmp_path.glob("*/tokenizer.json"))) == 1


@pytest.mark.parametrize("kind", [*SIZES, "wikitext2"])
def test_real_data_travel_small_and_whole(kind):
    dataset = load(kind)
    numbers = torch.tensor([0, len(dataset.test) - 1])
    dataset.test.take(numbers)
    sent = pickle.dumps(dataset)
    assert len(sent) < 4000
    for one, other in zip(dataset.test.take(numbers).inputs, pickle.loads(sent).test.take(numbers).inputs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [*SIZES, "wikitext2"])
def test_a_second_load_of_real_data_makes_nothing(cache, kind):
    load(kind)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.glob("*/*")}
    assert load(kind).digest == load(kind).digest
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.glob("*/*")} == before

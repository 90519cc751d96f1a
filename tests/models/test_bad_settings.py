"""Settings that data cannot serve: refused where they are read or where data are loaded, in clear words."""

from dataclasses import replace

import pytest
import torch
from broken import put, refused
from layouts import LAYOUTS, idx
from pydantic import ValidationError

from models import BERT, DATA, GRU, MLP, VGG11, XLM, DataError, Elman, Gaussian, Signature, Sinusoids, load_for
from models.data.loader import Sharing, check_sharing, load_steps

IID = Sharing(batch_size=8, accumulation_steps=1, world_size=2, rank=0, partition="iid", seed=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("mnist", {"image_size": 0}, "greater than or equal to 1"),
        ("cifar10", {"image_size": 4097}, "less than or equal to 4096"),
        ("tiny_imagenet", {"image_size": 2.5}, "valid integer"),
        ("mnist", {"held_out": "half"}, "'official' or 'fold'"),
        ("mnist", {"partition": "by_size"}, "'iid' or 'by_class'"),
        ("mnist", {"train_samples": 0}, "greater than or equal to 1"),
        ("mnist", {"size": 8}, "Extra inputs are not permitted"),
        ("mnist", {"root": "~nobody-of-this-name/data"}, "nobody-of-this-name"),
        ("wikitext2", {"vocabulary": 1}, "greater than or equal to 259"),
        ("wikitext2", {"objective": "previous"}, "'masked' or 'next'"),
        ("multi30k", {"vocabulary": 258}, "greater than or equal to 259"),
        ("multi30k", {"vocabulary": 10**7}, "less than or equal to 1000000"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, words):
    with pytest.raises(ValidationError, match=words):
        DATA[kind](**settings)


@pytest.mark.parametrize("model", [Elman, GRU, BERT, XLM])
@pytest.mark.parametrize("length", [0, -1])
def test_networks_refuse_pieces_without_tokens(model, length):
    with pytest.raises(ValidationError, match="sequence_length"):
        model(sequence_length=length)


@pytest.mark.parametrize(("kind", "least"), [("wikitext2", 2), ("multi30k", 6)])
def test_pieces_too_short_to_hold_anything_are_refused(tmp_path, kind, least):
    LAYOUTS[kind](tmp_path)
    for length in (None, -1, 0, 1, least - 1):
        refused(kind, tmp_path, f"model.sequence_length is {length}", kind, f"{least} or more", length=length)
    assert DATA[kind](root=tmp_path).load(0, least).signature.shape == (least,)


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_is_refused(tmp_path, kind, fold):
    if kind in LAYOUTS:
        LAYOUTS[kind](tmp_path)
        for held_out in ("official", "fold"):
            refused(kind, tmp_path, f"fold is {fold}", "0 to 4", fold=fold, held_out=held_out)
    elif kind != "wikitext103":  # which is read as wikitext2
        with pytest.raises(DataError, match=f"fold is {fold}; it must be 0 to 4"):
            DATA[kind]().load(fold)


@pytest.mark.parametrize(("kind", "files"), [("mnist", 4), ("cifar10", 4)])
def test_fewer_images_than_folds_are_told_with_their_folder(tmp_path, kind, files):
    folder = LAYOUTS[kind](tmp_path)
    if kind == "mnist":
        put("train-images-idx3-ubyte", idx(torch.zeros(files, 4, 4, dtype=torch.uint8).numpy()))(folder)
        put("train-labels-idx1-ubyte", idx(torch.zeros(files, dtype=torch.uint8).numpy()))(folder)
    else:
        (folder / "data_batch_2.bin").unlink()
    assert len(DATA[kind](root=tmp_path).load(0).train) == files
    refused(kind, tmp_path, folder, "found 4 items", "takes 5 or more", held_out="fold")


def test_images_that_no_memory_holds_are_refused(tmp_path):
    folder = LAYOUTS["mnist"](tmp_path)
    count = 10_000_000  # of one pixel each: small as a file
    put("train-images-idx3-ubyte", idx(torch.zeros(count, 1, 1, dtype=torch.uint8).numpy()))(folder)
    put("train-labels-idx1-ubyte", idx(torch.zeros(count, dtype=torch.uint8).numpy()))(folder)
    refused("mnist", tmp_path, "data.image_size is 4096", "take 167,772.2 GB of memory", image_size=4096)


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (BERT(), "multi30k", "bert takes tokens; data multi30k has pairs"),
        (XLM(), "wikitext2", "xlm takes pairs; data wikitext2 has tokens"),
        (MLP(), "wikitext2", "mlp takes features; data wikitext2 has tokens"),
        (GRU(), "wikitext2", "model.sequence_length is None"),
        (GRU(sequence_length=8), "multi30k", "gru takes series or tokens; data multi30k has pairs"),
        (VGG11(), "multi30k", "vgg11 takes images; data multi30k has pairs"),
        (BERT(), "mnist", "bert takes tokens; data mnist has images"),
        (GRU(sequence_length=5), "mnist", "model.sequence_length is 5, longer than the 4 steps of a series of mnist"),
        (GRU(sequence_length=3), "mnist", "is 3, which does not divide the 4 steps of a series of mnist"),
        (VGG11(), "digits", "vgg11 takes images; data digits has features"),
        (MLP(), "sinusoids", "mlp takes features; data sinusoids has series"),
        (Elman(sequence_length=65), "sinusoids", "is 65, longer than the 64 steps of a series of sinusoids"),
        (Elman(), "gaussian", "elman takes series or tokens; data gaussian has features"),
    ],
)
def test_a_network_that_does_not_take_such_samples_is_told(tmp_path, model, kind, words):
    root = {}
    if kind in LAYOUTS:
        LAYOUTS[kind](tmp_path)
        root = {"root": tmp_path}
    with pytest.raises(DataError) as error:
        load_for(model, DATA[kind](**root), 0)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("samples", "change", "words"),
    [
        (20, {"batch_size": 1}, "train.batch_size is 1, and 2 workers × 1 accumulation steps"),
        (20, {"batch_size": 1, "partition": "by_class"}, "take 2 or more"),
        (20, {"batch_size": 4, "accumulation_steps": 3}, "2 workers × 3 accumulation steps"),
        (20, {"batch_size": 40, "world_size": 40}, "cluster.workers is 40, more than the 16 training samples"),
        (20, {"batch_size": 40, "world_size": 40, "partition": "by_class"}, "more than the 16 training samples"),
        (20, {"batch_size": 32}, "there are 16 training samples; take 16 or less"),
        (20, {"batch_size": 20, "partition": "by_class"}, "each worker has 8 training samples; take 16 or less"),
    ],
)
def test_steps_that_samples_do_not_suffice_for_are_refused(samples, change, words):
    train = Gaussian(features=4, samples=samples, components=2, task="classification").load(0).train
    for check in (check_sharing, lambda *given: load_steps(*given, range(1))):
        with pytest.raises(DataError) as error:
            check(train, replace(IID, **change))
        assert words in str(error.value)


@pytest.mark.parametrize("data", [Sinusoids(samples=20), Gaussian(samples=20)])
def test_samples_without_classes_are_not_parted_by_class(data):
    with pytest.raises(DataError, match="by_class, and these samples have no classes; allowed is iid"):
        check_sharing(data.load(0).train, replace(IID, partition="by_class"))


def test_as_many_samples_as_workers_suffice():
    train = Gaussian(features=4, samples=20, components=2, task="classification").load(0).train
    for partition in ("iid", "by_class"):
        sharings = [replace(IID, batch_size=16, world_size=16, rank=rank, partition=partition) for rank in range(16)]
        steps = [next(load_steps(train, sharing, range(1))) for sharing in sharings]
        assert [len(batch) for (batch,) in steps] == [1] * 16


def test_bert_is_refused_what_it_would_see():
    signature = Signature("tokens", (8,), 300, each_step=True, vocabulary=300, ahead=True)
    with pytest.raises(ValueError, match=r"would see the next tokens that data\.objective asks for; take masked"):
        BERT(sequence_length=8).build(signature)
    assert GRU(width=2, sequence_length=8).build(signature) is not None

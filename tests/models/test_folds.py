"""Folds of files: held-out parts are disjoint, and cover everything with what is trained on."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS
from tokenizers import Tokenizer

from models import DATA
from models.data.cache import MappedArray
from models.data.wikitext import _articles


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADRANK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "tiny_imagenet", "multi30k"])
def test_folds_are_disjoint_and_cover_all_samples(tmp_path, kind):
    LAYOUTS[kind](tmp_path)
    everything = torch.arange(len(DATA[kind](root=tmp_path).load(0, 8).train))
    folds = [DATA[kind](root=tmp_path, held_out="fold").load(fold, 8) for fold in range(5)]
    for fold in folds:
        assert torch.equal(torch.cat([fold.train.indices, fold.test.indices]).sort().values, everything)
    assert torch.equal(torch.cat([fold.test.indices for fold in folds]).sort().values, everything)
    assert len({fold.digest for fold in folds}) == 5


def test_folds_that_share_a_tokeniser_have_digests_of_their_own(tmp_path):
    LAYOUTS["multi30k"](tmp_path)
    config = DATA["multi30k"](root=tmp_path, held_out="fold", vocabulary=259)  # which has no pair to merge
    assert len({config.load(fold, 8).digest for fold in range(5)}) == 5


def text_of(ids: MappedArray) -> str:
    tokeniser = Tokenizer.from_file(str(Path(ids.array.filename).with_name("tokenizer.json")))
    return tokeniser.decode(ids[:], skip_special_tokens=False)


def test_folds_of_text_are_whole_articles(tmp_path):
    folder = LAYOUTS["wikitext2"](tmp_path)
    articles = ["".join(article) for article in _articles(folder / "wiki.train.tokens")]
    assert len(articles) == 6
    folds = [DATA["wikitext2"](root=tmp_path, held_out="fold").load(fold, 8) for fold in range(5)]
    texts = [(text_of(fold.train.ids), text_of(fold.test.ids)) for fold in folds]
    for train, test in texts:
        assert Counter(train + test) == Counter("".join(articles))
        assert all((article in train) != (article in test) for article in articles)
    for (_, one), (_, other) in combinations(texts, 2):
        assert not any(article in one and article in other for article in articles)
    assert all(any(article in test for _, test in texts) for article in articles)


def test_titles_are_lines_between_blank_ones(tmp_path):
    text = " \n = One = \n \n x = 1 \n = y = \n and \n = = Part = = \n \n = Two = \n \n z \n"
    (tmp_path / "text").write_text(text)
    found = ["".join(article) for article in _articles(tmp_path / "text")]
    assert [article.split(" = ")[1] for article in found] == ["One", "Two"]
    assert "".join(found) == text


def test_text_that_looks_like_special_tokens_is_text(tmp_path):
    folder = LAYOUTS["wikitext2"](tmp_path)
    (folder / "wiki.test.tokens").write_text("one [PAD] two [SEP] three [MASK]\n" * 3)
    ids = DATA["wikitext2"](root=tmp_path).load(0, 8).test.ids
    assert min(ids[:]) > 2
    assert text_of(ids) == "one [PAD] two [SEP] three [MASK]\n" * 3

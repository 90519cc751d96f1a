"""WikiText-2 and WikiText-103 from their token files (Merity et al. 2016)."""

import re
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.cache import MappedArray
from models.data.dataset import Dataset, digest_of
from models.data.errors import DataError
from models.data.files import digest_of_files, find_folder, read_bytes, read_lines
from models.data.folds import check_fold, fold_indices
from models.data.samples import Batch, Samples
from models.data.signature import Kind, Signature
from models.data.text import TextData, check_length, masked, tokenised
from models.tasks import NOT_PREDICTED, TokenPrediction

TRAIN, HELD_OUT = "wiki.train.tokens", "wiki.test.tokens"
_TITLE = re.compile(r"^ = [^=].* = *$")
"""The line that an article begins with, between blank ones; sections have more signs, and formulas no blank lines."""


@dataclass(frozen=True)
class Blocks(Samples):
    """Pieces of equal length cut from a stream of tokens.

    Attributes:
        ids: of the stream, (tokens,) int32.
        length: positions of a piece.
        vocabulary: of the tokeniser.
        objective: to predict masked tokens, or at each position the next.
    """

    ids: MappedArray | NDArray[np.int32]
    length: int
    vocabulary: int
    objective: Literal["masked", "next"]

    def __len__(self) -> int:
        ahead = self.objective == "next"  # the last piece needs a token behind it
        return (len(self.ids) - ahead) // self.length

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        ahead = self.objective == "next"
        places = indices[:, None] * self.length + torch.arange(self.length + ahead)
        ids = torch.from_numpy(self.ids[places.numpy()]).long()
        if ahead:
            return Batch((ids[:, :-1],), (ids[:, 1:],))
        chosen, hidden = masked(ids, torch.ones_like(ids, dtype=torch.bool), indices, seed, self.vocabulary)
        return Batch((hidden,), (torch.where(chosen, ids, NOT_PREDICTED),))


class WikiText(TextData):
    """Articles of Wikipedia, cut into pieces of the network's `sequence_length`.

    Attributes:
        objective: `masked` language modelling, for BERT; or `next` tokens, for recurrent networks.
    """

    objective: Literal["masked", "next"] = "masked"

    folders: ClassVar[tuple[str, ...]]
    train_lines: ClassVar[int]
    gives: ClassVar[Kind | None] = "tokens"

    @property
    @abstractmethod
    def title(self) -> str:
        """Of the data set, for people."""

    def load(self, fold: int, length: int | None = None) -> Dataset:
        length = check_length(length, self.kind, least=2)
        check_fold(fold)
        by_fold = self.held_out == "fold"
        folder = find_folder(self.root, self.kind, self.folders, [TRAIN, HELD_OUT])
        files = [folder / TRAIN] if by_fold else [folder / TRAIN, folder / HELD_OUT]
        lines = read_bytes(folder / TRAIN).count(b"\n")
        state = digest_of(digest_of_files(files), self.held_out, str(fold) if by_fold else "")

        def make() -> tuple[list[list[str]], dict[str, list[str]]]:
            articles = _articles(folder / TRAIN)
            if by_fold:
                kept, out = fold_indices(len(articles), fold, f"articles of {folder / TRAIN}")
                train, test = [articles[number] for number in kept], [articles[number] for number in out]
            else:
                train, test = articles, _articles(folder / HELD_OUT)
            return train, {"train": ["".join(text) for text in train], "held-out": ["".join(text) for text in test]}

        parts, vocabulary, digest = tokenised(self.kind, state, self.vocabulary, make)
        train, test = (Blocks(parts[name][0], length, vocabulary, self.objective) for name in ("train", "held-out"))
        for name, blocks in (("training", train), ("held-out", test)):
            if not len(blocks):
                raise DataError(
                    f"model.sequence_length is {length}; the {name} text of {folder} has {len(blocks.ids):,} tokens, "
                    "which is not one piece"
                )
        notes = [f"{lines:,} of {self.train_lines:,} training lines"] if lines < self.train_lines else []
        return Dataset(
            name=self.kind,
            source=f"token files of {self.title} in {folder}; {len(parts['train'][0]):,} training and "
            f"{len(parts['held-out'][0]):,} held-out tokens of {vocabulary:,} kinds",
            digest=digest_of(digest, str(length), self.objective),
            task=TokenPrediction(),
            signature=Signature(
                "tokens", (length,), vocabulary, True, vocabulary=vocabulary, ahead=self.objective == "next"
            ),
            train=train,
            test=test,
            notes=tuple(notes),
        )


class WikiText2(WikiText):
    """The smaller one: 600 training articles, about two million words."""

    kind: Literal["wikitext2"] = "wikitext2"
    folders: ClassVar[tuple[str, ...]] = ("wikitext-2", "wikitext2")
    train_lines: ClassVar[int] = 36_718

    @property
    def title(self) -> str:
        return "WikiText-2"


class WikiText103(WikiText):
    """The larger one: 28,475 training articles, about a hundred million words."""

    kind: Literal["wikitext103"] = "wikitext103"
    folders: ClassVar[tuple[str, ...]] = ("wikitext-103", "wikitext103")
    train_lines: ClassVar[int] = 1_801_350

    @property
    def title(self) -> str:
        return "WikiText-103"


def _articles(path: Path) -> list[list[str]]:
    """The text as articles, each a list of lines with their ends."""
    lines = read_lines(path)
    filled = [bool(line.strip()) for line in [" ", *lines, " "]]  # lines[n] is filled[n + 1]
    begins = [n for n, line in enumerate(lines) if _TITLE.match(line) and not filled[n] and not filled[n + 2]]
    begins[:1] = [0]  # what stands before the first title goes with it
    return [[line + "\n" for line in lines[start:stop]] for start, stop in pairwise([*begins, len(lines)])]

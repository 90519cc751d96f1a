"""Multi30k, task 1: descriptions of images in English and German (Elliott et al. 2016)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.cache import MappedArray
from models.data.dataset import Dataset, digest_of
from models.data.errors import DataError
from models.data.files import digest_of_files, find_folder, read_lines
from models.data.folds import check_fold, fold_indices
from models.data.samples import Batch, Chosen, Samples
from models.data.signature import Kind, Signature
from models.data.text import PAD, SEPARATOR, TextData, check_length, masked, tokenised
from models.tasks import NOT_PREDICTED, TokenPrediction

FOLDERS = ("multi30k/data/task1/raw", "data/task1/raw", "multi30k")
TRAIN, HELD_OUT = "train", "test_2016_flickr"
LANGUAGES = ("en", "de")
TRAIN_PAIRS = 29_000


@dataclass(frozen=True)
class Pairs(Samples):
    """Sentences with their translations, side by side: separator, English, separator, separator, German, separator.

    Longer than there is room for, both are cut. A batch gives ids, attention mask, languages and positions,
    which begin anew with the translation, and is to predict masked tokens of both (Lample and Conneau 2019).

    Attributes:
        ids: of all sentences of a language one after another, for each language.
        ends: where each sentence begins and the last one ends, for each language.
        length: positions of a pair.
        vocabulary: of the tokeniser.
    """

    ids: tuple[MappedArray | NDArray[np.int32], ...]
    ends: tuple[MappedArray | NDArray[np.int64], ...]
    length: int
    vocabulary: int

    def __len__(self) -> int:
        return len(self.ends[0]) - 1

    def take(self, indices: Tensor, seed: int = 0) -> Batch:
        shape = (len(indices), self.length)
        ids, languages, positions = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        ids.fill_(PAD)
        for row, number in enumerate(indices.tolist()):
            start = 0
            for language, sentence in enumerate(self._fitted(number)):
                stop = start + len(sentence) + 2
                ids[row, start], ids[row, stop - 1] = SEPARATOR, SEPARATOR
                ids[row, start + 1 : stop - 1] = torch.from_numpy(sentence)
                languages[row, start:stop] = language
                positions[row, start:stop] = torch.arange(stop - start)
                start = stop
        chosen, hidden = masked(ids, (ids != PAD) & (ids != SEPARATOR), indices, seed, self.vocabulary)
        attention = (ids != PAD).long()
        return Batch((hidden, attention, languages, positions), (torch.where(chosen, ids, NOT_PREDICTED),))

    def _fitted(self, number: int) -> list[NDArray[np.int64]]:
        """Both sentences, cut evenly where they are too long together."""
        pair = [
            ids[ends[number] : ends[number + 1]].astype(np.int64) for ids, ends in zip(self.ids, self.ends, strict=True)
        ]
        room = self.length - 2 * len(pair)
        shorter = min(len(sentence) for sentence in pair)
        most = max(room // 2, room - shorter)
        return [sentence[:most] for sentence in pair]


class Multi30k(TextData):
    """29,000 pairs to train on; `test_2016_flickr` is held out. One vocabulary serves both languages."""

    kind: Literal["multi30k"] = "multi30k"

    gives: ClassVar[Kind | None] = "pairs"

    def load(self, fold: int, length: int | None = None) -> Dataset:
        length = check_length(length, self.kind, least=2 * len(LANGUAGES) + 2)
        check_fold(fold)
        by_fold = self.held_out == "fold"
        folder = find_folder(self.root, self.kind, FOLDERS, [f"{TRAIN}.en(.gz)", f"{TRAIN}.de(.gz)", f"{HELD_OUT}.…"])
        used = [TRAIN] if by_fold else [TRAIN, HELD_OUT]
        files = {name: [folder / f"{name}.{language}" for language in LANGUAGES] for name in used}
        pairs = {name: _read(*paths) for name, paths in files.items()}
        count = len(pairs[TRAIN][0])
        kept, out = fold_indices(count, fold, f"pairs in {folder}") if by_fold else (torch.arange(count), None)

        def make() -> tuple[list[list[str]], dict[str, list[str]]]:
            training = [[texts[number] for number in kept] for texts in pairs[TRAIN]]
            named = {
                f"{name}.{language}": texts
                for name, both in pairs.items()
                for language, texts in zip(LANGUAGES, both, strict=True)
            }
            return training, named

        state = digest_of(*(digest_of_files(paths) for paths in files.values()), str(fold) if by_fold else "")
        parts, vocabulary, digest = tokenised(self.kind, state, self.vocabulary, make)

        def samples(name: str) -> Pairs:
            ids, ends = zip(*(parts[f"{name}.{language}"] for language in LANGUAGES), strict=True)
            return Pairs(ids, ends, length, vocabulary)

        train: Samples = samples(TRAIN)
        test: Samples = samples(HELD_OUT) if out is None else Chosen(train, out)
        if out is not None:
            train = Chosen(train, kept)
        return Dataset(
            name=self.kind,
            source=f"task 1 of Multi30k, English and German, in {folder}; vocabulary of {vocabulary:,}",
            digest=digest_of(digest, str(length), str(fold) if by_fold else ""),
            task=TokenPrediction(),
            signature=Signature(
                "pairs", (length,), vocabulary, each_step=True, vocabulary=vocabulary, languages=len(LANGUAGES)
            ),
            train=train,
            test=test,
            notes=(f"{count:,} of {TRAIN_PAIRS:,} training pairs",) if count < TRAIN_PAIRS else (),
        )


def _read(english: Path, german: Path) -> tuple[list[str], list[str]]:
    first, second = read_lines(english), read_lines(german)
    if len(first) != len(second):
        raise DataError(
            f"{german}: holds {len(second):,} lines and {english.name} {len(first):,}; each line is expected to "
            "translate the same line of the other"
        )
    for path, lines in ((english, first), (german, second)):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise DataError(f"{path}: line {number} is empty; a sentence is expected")
    return first, second

"""Text as token ids: a tokeniser trained on the training split, and arrays of ids, both made once."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from models.config import DataConfig, Folder
from models.data.cache import MappedArray, cached, damaged, read_cached
from models.data.dataset import digest_of
from models.data.errors import DataError

PAD, SEPARATOR, MASK = 0, 1, 2
SPECIAL = ("[PAD]", "[SEP]", "[MASK]")
LEAST_VOCABULARY = 256 + len(SPECIAL)
"""All bytes and the special tokens: with these, any text can be told."""

MASKED_SHARE = 0.15
"""Share of tokens that are to be predicted; of these 80 % are masked, 10 % another token, 10 % as they are
(Devlin et al. 2019)."""

_TEXTS_AT_ONCE = 512
_TOKENISER, _DIGEST = "tokenizer.json", "digest"


class TextData(DataConfig):
    """Text in files.

    Attributes:
        root: the folder that holds data sets; None takes GRADRANK_DATA_ROOT.
        vocabulary: tokens of the byte-level BPE tokeniser that is trained on the training split.
        held_out: `official` evaluates on the official held-out split; `fold` cross-validates in the training one.
    """

    root: Folder | None = None
    vocabulary: Annotated[int, Field(ge=LEAST_VOCABULARY, le=1_000_000)] = 4096
    held_out: Literal["official", "fold"] = "official"


def tokenised(
    name: str,
    state: str,
    vocabulary: int,
    make: Callable[[], tuple[Sequence[Sequence[str]], Mapping[str, Sequence[str]]]],
) -> tuple[dict[str, tuple[MappedArray, MappedArray]], int, str]:
    """Train a tokeniser and apply it, or take what an earlier run has made.

    Args:
        name: of the data set, for the cache.
        state: a hash that changes with the files and with what is read of them.
        vocabulary: of the tokeniser at most; little text gives fewer tokens.
        make: gives texts to train the tokeniser on, and texts by the name of their part.

    Returns:
        For each part the ids of all texts one after another and where each text begins and the last ends
        (texts + 1,); the vocabulary; and a hash of all of it.

    Raises:
        DataError: `make` does, or the cache cannot be read or written.
    """

    def fill(folder: Path) -> None:
        training, parts = make()
        tokeniser = _trained(training, vocabulary)
        tokeniser.save(str(folder / _TOKENISER))
        contents: list[NDArray[np.generic]] = []
        for part, texts in parts.items():
            encoded = list(_encoded(tokeniser, texts))
            ends = np.cumsum([0, *(len(ids) for ids in encoded)], dtype=np.int64)
            ids = np.concatenate(encoded)
            np.save(folder / f"{part}.npy", ids)
            np.save(folder / f"{part}-ends.npy", ends)
            contents += [ids, ends]
        (folder / _DIGEST).write_text(digest_of(tokeniser.to_str(), *contents))

    folder = cached(f"{name}-tokens", (state, vocabulary), fill)
    parts = {
        path.name.removesuffix("-ends.npy"): (
            MappedArray(path.with_name(f"{path.name.removesuffix('-ends.npy')}.npy")),
            MappedArray(path),
        )
        for path in sorted(folder.glob("*-ends.npy"))
    }
    try:
        size = Tokenizer.from_str(read_cached(folder / _TOKENISER)).get_vocab_size()
    except DataError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise damaged(folder / _TOKENISER, error) from error
    return parts, size, read_cached(folder / _DIGEST)


def _trained(texts: Sequence[Sequence[str]], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokeniser: no text has a token that it does not know."""
    # A process that has used the tokenisers' threads must not fork without this being said.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokeniser = Tokenizer(BPE())
    tokeniser.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokeniser.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokeniser.train_from_iterator((line for text in texts for line in text), trainer)
    return tokeniser


def _encoded(tokeniser: Tokenizer, texts: Sequence[str]) -> Iterator[NDArray[np.int32]]:
    """The ids of each text; some at a time, since encodings are many times larger than ids."""
    tokeniser.encode_special_tokens = True  # as text: whoever writes [MASK] means the letters
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        part = list(texts[start : start + _TEXTS_AT_ONCE])
        for encoding in tokeniser.encode_batch_fast(part, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.int32)


def masked(ids: Tensor, may_be: Tensor, numbers: Tensor, seed: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Choose tokens to be predicted, and hide them.

    As many of a sample as 15 % of those that may be, rounded, one at least. So samples of one length weigh
    alike, and the mean over workers is the mean over all tokens.

    Args:
        ids: samples × positions.
        may_be: the same, True where a token may be chosen.
        numbers: of the samples, (samples,): with the seed they fix what is drawn.
        seed: of this pass over the data.
        vocabulary: other tokens are drawn of it.

    Returns:
        Which are chosen, samples × positions; and the ids that the network is given.
    """
    draws = np.stack([np.random.default_rng((seed, int(number))).random((3, ids.shape[1])) for number in numbers])
    order, fate, other = torch.from_numpy(draws).unbind(1)
    count = (MASKED_SHARE * may_be.sum(1)).round().clamp(min=1)
    rank = torch.where(may_be, order, 2.0).argsort(1).argsort(1)
    chosen = (rank < count[:, None]) & may_be
    replaced = (len(SPECIAL) + other * (vocabulary - len(SPECIAL))).long()
    hidden = torch.where(fate < 0.8, torch.full_like(ids, MASK), torch.where(fate < 0.9, replaced, ids))
    return chosen, torch.where(chosen, hidden, ids)


def check_length(length: int | None, kind: str, least: int) -> int:
    """The length of pieces of text, which the network's `sequence_length` says.

    Raises:
        DataError: it says none, or too few.
    """
    if length is None or length < least:
        raise DataError(
            f"model.sequence_length is {length}; {kind} is cut into pieces of that many tokens, {least} or more"
        )
    return length

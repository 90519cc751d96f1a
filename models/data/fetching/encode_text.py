"""Text of the hub as files of lines."""

from collections.abc import Iterable, Iterator

from models.data import multi30k, wikitext
from models.data.fetching.rows import Rows

_WIKITEXT = {"train": wikitext.TRAIN, "validation": "wiki.valid.tokens", "test": wikitext.HELD_OUT}
_MULTI30K = {"train": multi30k.TRAIN, "validation": "val", "test": multi30k.HELD_OUT}
_BLANK = " \n"
"""A blank line of the token files; the hub has an empty text for it, and all others with their ends."""


def encode_wikitext(split: str, rows: Rows) -> Iterator[tuple[str, Iterable[bytes]]]:
    """The token file of a split."""
    name = _WIKITEXT[split]
    yield name, ("".join(text or _BLANK for text in texts).encode() for (texts,) in rows.batches(name, "text"))


def encode_multi30k(split: str, rows: Rows) -> Iterator[tuple[str, Iterable[bytes]]]:
    """A file for each language, a sentence a line."""
    for language in multi30k.LANGUAGES:
        name = f"{_MULTI30K[split]}.{language}"
        batches = rows.batches(name, language)
        yield name, ("".join(f"{sentence}\n" for sentence in sentences).encode() for (sentences,) in batches)

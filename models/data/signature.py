"""What a network takes and gives."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["features", "images", "series", "tokens", "pairs"]

VIEWS: dict[Kind, tuple[Kind, ...]] = {
    "features": ("features",),
    "images": ("images", "features", "series"),
    "series": ("series",),
    "tokens": ("tokens",),
    "pairs": ("pairs",),
}
"""What samples of a kind can be given as: an image is a vector of its pixels too, or a series, a step for each row."""


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives.

    Attributes:
        kind: of a sample.
            `features`: a vector. `images`: channels × height × width. `series`: steps × features.
            `tokens`: ids of tokens, one for each position. `pairs`: a sentence and its translation, as
            token ids, attention mask, languages and positions.
        shape: of the first input of one sample, such as (784,), (3, 32, 32), (128, 16) or (64,).
        outputs: features or classes that a network must give, or tokens of the vocabulary.
        each_step: whether it must give them for each step or position, not once a sample.
        vocabulary: how many tokens there are; 0 where inputs are numbers.
        languages: of pairs; else 1.
        ahead: whether each output is to tell the next step, which the network must not see.
    """

    kind: Kind
    shape: tuple[int, ...]
    outputs: int
    each_step: bool = False
    vocabulary: int = 0
    languages: int = 1
    ahead: bool = False

    @property
    def features(self) -> int:
        """Numbers in a vector, in a step, or in a whole image."""
        return self.shape[-1] if self.kind in ("features", "series") else int(np.prod(self.shape))

"""Five-fold cross-validation, the same on every worker and machine."""

import numpy as np
import torch
from torch import Tensor

from models.data.errors import DataError
from models.data.samples import Chosen, Samples, TensorSamples

FOLDS = 5


def check_fold(fold: int) -> None:
    """Refuse a fold that is not.

    Raises:
        DataError: fold outside 0 to 4.
    """
    if not 0 <= fold < FOLDS:
        raise DataError(f"fold is {fold}; it must be 0 to {FOLDS - 1}")


def fold_indices(count: int, fold: int, source: str = "data") -> tuple[Tensor, Tensor]:
    """Numbers of training and held-out items in one fold of shuffled five-fold cross-validation.

    The shuffle is always the same, so that folds are disjoint and every worker and machine agrees.

    Args:
        count: of all items.
        fold: 0 to 4.
        source: where they come from, for errors.

    Raises:
        DataError: fold outside 0 to 4, or fewer than five items.
    """
    check_fold(fold)
    if count < FOLDS:
        raise DataError(
            f"{source}: found {count} items to hold a fifth out of; five-fold cross-validation takes {FOLDS} or more"
        )
    from sklearn.model_selection import KFold  # takes a second to import, and not all data sets need it

    train, test = list(KFold(FOLDS, shuffle=True, random_state=0).split(np.arange(count)))[fold]
    return torch.from_numpy(train), torch.from_numpy(test)


def hold_out(samples: Samples, fold: int, source: str = "data") -> tuple[Samples, Samples]:
    """Training and held-out samples of one fold, as `fold_indices` tells them."""
    train, test = fold_indices(len(samples), fold, source)
    if isinstance(samples, TensorSamples):  # copied once, so that taking needs no second look-up
        return tuple(
            TensorSamples(samples.inputs[part], None if samples.targets is None else samples.targets[part])
            for part in (train, test)
        )  # type: ignore[return-value]
    return Chosen(samples, train), Chosen(samples, test)

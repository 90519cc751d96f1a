"""The Hugging Face hub, through its own library."""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models.data.errors import DataError
from models.data.fetching.source import Source

REACH_TIMEOUT_S = 10
INSTALL = "pip install 'gradrank[fetch]'"


def is_installed() -> bool:
    """Whether the library that speaks with the hub is there."""
    try:
        version("datasets")
    except PackageNotFoundError:
        return False
    return True


def downloaded(source: Source, folder: Path, *, anew: bool = False) -> Mapping[str, Any]:
    """All splits of a data set, each a `datasets.Dataset`, out of the hub client's cache where it has them.

    Args:
        source: the data set.
        folder: where its files go, for errors.
        anew: download it again, even where the cache has it.

    Raises:
        DataError: the library is not installed, the hub cannot be reached, or does not give the data set.
    """
    if not is_installed():
        raise DataError(f"{source.name} cannot be fetched without the package `datasets`: {INSTALL}")
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
    _reach(source, folder)
    mode = datasets.DownloadMode.FORCE_REDOWNLOAD if anew else datasets.DownloadMode.REUSE_DATASET_IF_EXISTS
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(source.repository, source.configuration, download_mode=mode)
    except Exception as error:  # of several libraries, which have no error in common
        raise DataError(
            f"{source.repository} could not be had from the hub ({type(error).__name__}: {_one_line(error)}). Files "
            "that were downloaded whole are kept, and the same command goes on with the others; "
            f"or {_by_hand(source, folder)}"
        ) from error
    return splits


def _reach(source: Source, folder: Path) -> None:
    """Ask the hub once, since its client tries again for long before it says that there is no network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:  # then the client answers from its cache, or says that it cannot
        return
    try:
        get_session().head(f"{constants.ENDPOINT}/api/datasets/{source.repository}", timeout=REACH_TIMEOUT_S)
    except Exception as error:  # likewise
        raise DataError(
            f"{constants.ENDPOINT} cannot be reached ({_one_line(error)}), where {source.repository} is. Run this "
            f"where there is a network, or {_by_hand(source, folder)}"
        ) from error


def _by_hand(source: Source, folder: Path) -> str:
    return f"copy the files of {source.name} to {folder}: {source.contents}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

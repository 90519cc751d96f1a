"""A page of the docs, followed from outside the repository."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""


@contextmanager
def followed(page: str, folder: Path, expected: Sequence[str]) -> Iterator[Path]:
    """Write the files that a page shows into a folder, which is the current one meanwhile.

    Args:
        page: its name in docs.
        folder: an empty one.
        expected: names of the files that the page must show.
    """
    packages = set()
    for name, body in re.findall(
        r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL
    ):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
        if path.parent != folder:
            packages.add(path.parent.name)
    assert sorted(path.name for path in folder.rglob("*.*")) == sorted(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]

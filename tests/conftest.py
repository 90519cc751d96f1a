import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workers import Workers

NO_DATA = "GRADRANK_DATA_ROOT is not set"
"""Why tests on real files are skipped."""


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], Workers]]:
    """`workers(n)` gives n processes, started once and kept for the whole test run."""
    groups: dict[int, Workers] = {}

    def get(world_size: int) -> Workers:
        if world_size not in groups:
            groups[world_size] = Workers(world_size)
        return groups[world_size]

    yield get
    for group in groups.values():
        group.close()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the test run's own, which processes that tests start use too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADRANK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; tests that take it are skipped where there is none."""
    root = os.environ.get("GRADRANK_DATA_ROOT")
    if not root:
        pytest.skip(NO_DATA)
    return Path(root)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many tests were skipped for want of data."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_DATA in str(report.longrepr)]
    why = f": {NO_DATA}" if skipped else ""
    terminalreporter.write_line(f"{len(skipped)} tests were skipped for want of data{why}")

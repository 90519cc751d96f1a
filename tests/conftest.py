from collections.abc import Callable, Iterator

import pytest
from workers import Workers


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

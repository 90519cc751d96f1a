"""Progress tells the time left, of the study and of the cell that runs."""

import io
import re

import pytest
from rich.console import Console

from launch import progress as module
from launch.progress import StudyProgress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_the_time_left_at_the_pace_so_far(clock):
    output = io.StringIO()
    with StudyProgress(Console(file=output, width=200), 2, {0: 100, 1: 100}, {0: "first", 1: "[/second]"}) as progress:
        progress.running(0)
        clock[0] += 50
        progress.advance(0, 50)
        progress.ended(0, "well")
        progress.running(1)
        clock[0] += 20
        progress.advance(1, 10)
    lines = output.getvalue().splitlines()
    assert re.search(r"first: step 50 of 100, about 50 s left; study: about 2 min left", lines[0])
    assert "1/2  first: well" in lines[1]
    assert "[/second]: step 10 of 100, about 3 min left" in lines[2]

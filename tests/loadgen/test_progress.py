from __future__ import annotations

import asyncio
import io

import pytest

from loadgen import progress
from loadgen.runner import Counts
from tests.waiting import turns


def test_elsewhere_than_on_a_terminal_there_is_a_line_every_few_seconds_and_a_last_one() -> None:
    out = io.StringIO()
    shown = progress.view("replay", 100, out)
    for ended in range(45):
        shown.show(Counts(ended=ended, in_flight=2, failed=1))
    shown.close()
    lines = out.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [f"replay: {n}/100 ended" for n in (0, 20, 40, 44)]
    assert "2 in flight, 1 failed" in lines[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_on_a_terminal_there_is_a_bar_that_ends_where_the_run_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # where it is "dumb", as under CI, there is no bar
    out, counts = Terminal(), Counts()
    following = asyncio.create_task(progress.follow(counts, progress.view("replay", 7, out)))
    await turns()
    counts.ended, counts.shed, counts.lateness_s_max = 7, 3, 0.2
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert "7/7" in out.getvalue()
    assert "3 shed" in out.getvalue()
    assert "200 ms late at most" in out.getvalue()

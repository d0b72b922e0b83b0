"""How late the loop is, as it is counted, and what follows where it stood still."""

from __future__ import annotations

import time
from pathlib import Path

from controlplane.upkeep import LAG_S_MAX, STILL_S, LoopLag
from tests.controlplane.served import serve
from tests.waiting import turns, until


def test_the_worst_since_it_was_asked_last() -> None:
    lag = LoopLag()
    for late_s in (0.001, 0.03, -0.002):
        lag.add(late_s)
    assert lag.worst_s() == 0.03
    assert lag.worst_s() == 0.0, "of the time since then"
    lag.add(0.002)
    assert lag.worst_s() == 0.002


def test_turns_that_were_too_late_are_counted() -> None:
    lag = LoopLag()
    for late_s in (LAG_S_MAX / 2, LAG_S_MAX, 2 * LAG_S_MAX, 1.0):
        lag.add(late_s)
    assert lag.long == 2


async def test_a_loop_that_stood_still_gives_every_engine_that_time(short_dir: Path) -> None:
    async with serve(short_dir, workers=2) as served:
        await turns(3)  # the upkeep looks
        endpoints = served.plant.snapshot.endpoints()
        before = [endpoint.progressed_at for endpoint in endpoints]
        time.sleep(2 * STILL_S)  # noqa: ASYNC251 - the process stands still, which is what is tested
        await until(lambda: all(one.progressed_at > was + STILL_S for one, was in zip(endpoints, before, strict=True)))
        assert all(endpoint.progressed_at <= served.plant.now for endpoint in endpoints)

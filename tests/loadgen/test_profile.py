"""A sweep over a fleet whose capacity is known."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from contract.features import FEATURES, VERSION
from contract.outcome import Outcome
from loadgen import profile
from loadgen.errors import LoadError
from loadgen.profile import Interrupted, Result
from loadgen.profile_progress import SweepView
from loadgen.profile_rows import Played
from loadgen.profile_run import RunDirectory
from loadgen.rows import Row
from loadgen.sweep import Combination, Grid, Step
from loadgen.sweep_rows import MadeUp
from runtime.clock import SystemClock
from tests.trainer import traffic

CAPACITY_RPS = 40.0
SOURCE = MadeUp(4_000)
GRID = Grid(mixes=("mixed",), overlaps=(0.0,), outputs=("short",), levels=(0.5, 1.5), rows=100, requests_max=50)


class Queue:
    """A fleet of one worker that ends CAPACITY_RPS requests a second, in order."""

    workers = 1
    speed = 1.0

    def __init__(self, *, fails: bool = False, interrupted_at: int | None = None) -> None:
        self.steps: list[Step] = []
        self._fails = fails
        self._interrupted_at = interrupted_at

    async def play(self, step: Step, rows: list[Row]) -> Result:
        self.steps.append(step)
        assert len(rows) == step.requests
        if self._interrupted_at is not None and len(self.steps) > self._interrupted_at:
            return Result(interrupted=True)
        if self._fails:
            return Result(failed=len(rows), why="connect: refused")
        result = Result()
        free_s = 0.0
        for number in range(len(rows)):
            free_s = max(free_s, number / step.rate_rps) + 1 / CAPACITY_RPS
            result.ended_s.append(free_s)
            result.played.append(Played(_outcome(f"{step.index}-{number}"), None))
        return result


def _outcome(name: str) -> Outcome:
    features = [1.0] * len(FEATURES)
    return msgspec.structs.replace(traffic.outcomes(1, 0)[0], request_id=name, features=features, feature_version=VERSION)


def view() -> SweepView:
    return SweepView(SystemClock(), io.StringIO())


async def planned(fleet: Queue) -> profile.Plan:
    found = await profile.find_saturation(fleet, SOURCE, GRID, view())
    return profile.plan_of(GRID, found, run="p", started_at=0.0, speed=1.0, options={})


async def test_saturation_is_found_where_the_fleet_ends_no_more_than_arrive() -> None:
    found = await profile.find_saturation(Queue(), SOURCE, GRID, view())
    assert found == {str(Combination("mixed", 0.0, "short")): pytest.approx(CAPACITY_RPS, rel=0.05)}


async def test_given_rates_need_no_search() -> None:
    fleet = Queue()
    grid = msgspec.structs.replace(GRID, rates_rps=(1.0,))
    assert await profile.find_saturation(fleet, SOURCE, grid, view()) == {}
    assert fleet.steps == []


async def test_a_fleet_that_fails_while_it_is_probed_is_an_error_with_its_reason() -> None:
    with pytest.raises(LoadError, match="looking for saturation: 24 of 24 requests failed: connect: refused"):
        await profile.find_saturation(Queue(fails=True), SOURCE, GRID, view())


async def test_someone_may_end_the_search() -> None:
    with pytest.raises(Interrupted):
        await profile.find_saturation(Queue(interrupted_at=1), SOURCE, GRID, view())


async def test_every_step_is_played_once_also_over_an_interruption(tmp_path: Path) -> None:
    plan = await planned(Queue())
    directory = RunDirectory(tmp_path / "run")
    directory.begin(plan)
    with pytest.raises(Interrupted):
        await profile.play(plan, Queue(interrupted_at=1), SOURCE, directory, view())
    fleet = Queue()
    assert await profile.play(plan, fleet, SOURCE, directory, view()) == 0
    assert [step.index for step in fleet.steps] == list(range(1, len(plan.steps)))
    rows = directory.finish(plan)
    assert len(rows) == plan.requests == len(set(rows["request_id"].to_pylist()))


async def test_a_step_of_which_nothing_came_back_is_an_error_and_no_part(tmp_path: Path) -> None:
    plan = await planned(Queue())
    directory = RunDirectory(tmp_path / "run")
    directory.begin(plan)
    with pytest.raises(LoadError, match="none of its 50 requests became a sample: connect: refused"):
        await profile.play(plan, Queue(fails=True), SOURCE, directory, view())
    assert directory.finished(plan) == set()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_terminal_shows_a_bar_with_what_is_done_and_left(tmp_path: Path) -> None:
    plan = await planned(Queue())
    directory = RunDirectory(tmp_path / "run")
    directory.begin(plan)
    screen = Terminal()
    with SweepView(SystemClock(), screen) as shown:
        await profile.play(plan, Queue(), SOURCE, directory, shown)
    assert f"{plan.requests}/{plan.requests}" in screen.getvalue()
    assert "━" in screen.getvalue()
    assert f"{plan.requests} rows, 0 failed" in " ".join(screen.getvalue().split())

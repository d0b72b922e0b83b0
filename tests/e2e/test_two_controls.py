"""Two control planes of one stack under load: the one that decides is killed, frozen, back; Redis goes. Nobody notices.

What it costs is printed: `pytest tests/e2e/test_two_controls.py -m slow -s`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.dataplane_process import until_ready
from tests.e2e.stack import RunningStack, running_stack
from tests.e2e.test_survival import IN_FLIGHT, Load, load_on
from tests.ports import free_ports
from tests.waiting import until_elsewhere as until

BACK_S_MAX = 40.0
"""From the kill to the return: a new process, its fleet read, three steady seconds."""
FALLBACK_S_MAX = 1.0
"""After a break the next one decides within tens of milliseconds; a busy machine may need longer."""
FROZEN_FALLBACK_S_MAX = 3.0
"""The deadline of a question, and three that missed it."""
SETTINGS = {
    "HEADWAY_DATAPLANE_DECISION_TIMEOUT_MS": "1000",  # that deadline: not to be missed by control planes that live
    "HEADWAY_CONTROLPLANE_GRACE_S_MAX": "4",  # of what nobody claims after a death: tests wait for it to pass
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    home = tmp_path_factory.mktemp("home")
    arguments = ("--speed", "4", "--processes", "2", "--controls", "2", "--no-trainer")
    with running_stack(home, *arguments, workers=3, environment=SETTINGS) as running:
        yield running


@dataclass
class Told:
    """One answer: when it was asked for, in monotonic seconds, and who chose its worker."""

    asked_at: float
    fallback: bool
    matched: int


class Watched(Load):
    """Load that remembers who decided."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__(url, model)
        self.told: list[Told] = []

    async def _one(self, session: aiohttp.ClientSession, text: str) -> str:
        asked_at = time.monotonic()
        try:
            async with session.post(self._url, json=self._body(text)) as reply:
                raw = await reply.read()
                if reply.status != 200 or not raw.rstrip().endswith(b"data: [DONE]") or b'data: {"error"' in raw:
                    self.problems.append(f"{reply.status}: {raw[-200:]!r}")
                    return f"status {reply.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            self.problems.append(repr(error))
            return type(error).__name__
        matched = int(reply.headers.get("x-headway-matched-tokens", 0))
        self.told.append(Told(asked_at, "x-headway-fallback" in reply.headers, matched))
        return "complete"

    def since(self, at: float) -> str:
        """What the fallback had to decide after a moment, for people."""
        late = sorted(one.asked_at - at for one in self.told if one.fallback and one.asked_at > at - 1.0)
        decided = sum(one.asked_at > at for one in self.told)
        last = f", the last asked for {late[-1] * 1000:.0f} ms after it" if late else ""
        return f"{len(late)} of {decided} requests decided by the fallback{last}"

    def last_fallback_s(self, at: float) -> float:
        return max((one.asked_at - at for one in self.told if one.fallback), default=0.0)


def metric(stack: RunningStack, name: str, *, control: int) -> float:
    """Sum over labels, of a control plane; -1: it does not answer."""
    port = (urlsplit(stack.url).port or 0) + 2 + 100 * (control - 1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as reply:
            page = reply.read().decode()
    except OSError:
        return -1.0
    found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE)
    assert found, f"no metric {name}"
    return sum(float(value) for value in found)


def decides(stack: RunningStack, control: int, processes: int = 2) -> bool:
    return metric(stack, "headway_dataplane_streams", control=control) == processes


def decided(stack: RunningStack, processes: int = 2) -> bool:
    """By either."""
    return sum(max(0.0, metric(stack, "headway_dataplane_streams", control=control)) for control in (1, 2)) == processes


def at_rest(stack: RunningStack) -> bool:
    names = ("headway_reservations", "headway_worker_active_requests", "headway_worker_active_elsewhere")
    return all(metric(stack, name, control=control) == 0 for name in names for control in (1, 2))


async def rest(stack: RunningStack) -> None:
    await until(lambda: at_rest(stack), seconds_max=20, what="no reservation at either, nor any of the other's")


@pytest.mark.slow
async def test_a_killed_one_costs_no_request_and_hardly_a_decision(pair: RunningStack) -> None:
    await until(lambda: decides(pair, 1), seconds_max=20, what="the first decides")
    async with load_on(pair, kind=Watched) as load:
        assert isinstance(load, Watched)
        killed, at = pair.kill("controlplane"), time.monotonic()
        await until(lambda: decides(pair, 2), seconds_max=10, what="the second decides")
        await load.completed(4 * IN_FLIGHT)
        print(f"\nkilled: {load.since(at)}")
        assert load.last_fallback_s(at) < FALLBACK_S_MAX
        assert any(one.matched for one in load.told[-IN_FLIGHT:]), "no decision by what workers hold"
        await until(lambda: pair.child_pids().get("controlplane", [killed]) != [killed], seconds_max=20, what="a new one")
        await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides again")
        print(f"returned to after {time.monotonic() - at:.1f} s")
        moved_at = time.monotonic()
        await load.completed(4 * IN_FLIGHT)
        assert load.last_fallback_s(moved_at) <= 0
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])
    await rest(pair)


@pytest.mark.slow
async def test_a_frozen_one_is_left_within_its_deadline_and_returned_to(pair: RunningStack) -> None:
    await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides")
    (pid,) = pair.child_pids()["controlplane"]
    async with load_on(pair, kind=Watched) as load:
        assert isinstance(load, Watched)
        os.kill(pid, signal.SIGSTOP)
        at = time.monotonic()
        try:
            await until(lambda: decides(pair, 2), seconds_max=10, what="the second decides")
            left_s = time.monotonic() - at
            await load.completed(4 * IN_FLIGHT)
            print(f"\nfrozen: left after {left_s * 1000:.0f} ms at most, {load.since(at)}")
            assert load.last_fallback_s(at) < FROZEN_FALLBACK_S_MAX
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides again")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])
    await rest(pair)


@pytest.mark.slow
async def test_without_redis_each_decides_by_itself_and_nothing_is_left_of_the_other(pair: RunningStack) -> None:
    await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides")
    async with load_on(pair, kind=Watched) as load:
        await until(
            lambda: metric(pair, "headway_worker_active_elsewhere", control=2) > 0, seconds_max=10, what="heard by the second"
        )
        (pid,) = pair.child_pids()["redis"]
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(
                lambda: metric(pair, "headway_replicas", control=2) == 0, seconds_max=10, what="nobody is heard without Redis"
            )
            assert metric(pair, "headway_worker_active_elsewhere", control=2) == 0
            await load.completed(2 * IN_FLIGHT)
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: metric(pair, "headway_replicas", control=2) == 1, seconds_max=20, what="heard again")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])
    await rest(pair)


@pytest.mark.slow
async def test_both_decide_for_a_data_plane_each_and_know_what_the_other_has_in_flight(pair: RunningStack) -> None:
    await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides")
    port, grpc_port = free_ports(1), (urlsplit(pair.url).port or 0) + 1
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dataplane", "--port", str(port)),
        *("--control", f"127.0.0.1:{grpc_port + 100},127.0.0.1:{grpc_port}"),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        await until_ready(process, 1)
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        await until(lambda: decides(pair, 2, processes=1), seconds_max=10, what="the second decides for the other data plane")
        async with load_on(pair) as load, load_on(pair, url=f"http://127.0.0.1:{port}") as other:
            for control in (1, 2):
                await until(
                    lambda control=control: metric(pair, "headway_worker_active_elsewhere", control=control) > 0,  # type: ignore[misc]
                    seconds_max=10,
                    what=f"control plane {control} hears of the other's requests",
                )
            await asyncio.gather(load.completed(2 * IN_FLIGHT), other.completed(2 * IN_FLIGHT))
        assert set(load.ends) == set(other.ends) == {"complete"}, (load.problems[:3], other.problems[:3])
        await rest(pair)
    finally:
        process.terminate()
        await process.wait()
    await reading


@pytest.mark.slow
async def test_both_killed_together_leave_the_fallback_and_come_back(pair: RunningStack) -> None:
    """The last of them: a return that failed makes the next one wait twice as long, and the first may come back second."""
    await until(lambda: decides(pair, 1), seconds_max=BACK_S_MAX, what="the first decides")
    async with load_on(pair, kind=Watched) as load:
        pair.kill("controlplane")
        pair.kill("controlplane-2")
        await load.completed(2 * IN_FLIGHT)
        await until(lambda: decided(pair), seconds_max=BACK_S_MAX, what="one of them decides again for each process")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])
    await rest(pair)

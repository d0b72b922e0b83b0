"""An engine that accepts requests, says that it is well, and never answers: callers are served elsewhere, operators see it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.e2e.stack import PATIENT, RunningStack, running_stack
from tests.e2e.test_rolling import no_reservations, status_of
from tests.e2e.test_survival import RECOVERY_S_MAX
from tests.waiting import until, until_elsewhere, wait_until

REQUESTS = 16
SETTINGS = PATIENT | {
    "HEADWAY_CONTROLPLANE_HUNG_AFTER_S": "3",
    "HEADWAY_DATAPLANE_STUCK_AFTER_S": "2",
    "HEADWAY_DATAPLANE_RETRY_PER_S": "10",
}


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    arguments = ("--speed", "4", "--engine-faults", "--no-trainer", "--policy", "round_robin")
    with running_stack(tmp_path_factory.mktemp("home"), *arguments, workers=2, environment=SETTINGS) as running:
        yield running


def engine_of(stack: RunningStack, number: int) -> str:
    port = urlsplit(stack.url).port
    assert port is not None
    return f"http://127.0.0.1:{port + 2 + number}"


def order(stack: RunningStack, **fault: object) -> None:
    """To the engine of worker-1."""
    url = engine_of(stack, 1) + "/emulator/faults"
    request = urllib.request.Request(url, json.dumps(fault).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10):
        pass


def shown(stack: RunningStack) -> str:
    """`headway workers`, as an operator types it."""
    done = subprocess.run(
        [sys.executable, "-m", "headway", "workers"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "HEADWAY_HOME": str(stack.home), "COLUMNS": "250"},
    )
    return done.stdout


def _alarmed(table: str) -> str:
    """The table, where it has the alarm; else empty."""
    return table if "worker-1: breaker" in table else ""


async def ask(session: aiohttp.ClientSession, stack: RunningStack, model: str, number: int) -> tuple[int, str, str]:
    """Status, worker, attempts."""
    body = {"model": model, "prompt": f"question {number}", "max_tokens": 4, "stream": bool(number % 2)}
    async with session.post(stack.url + "/v1/completions", json=body) as reply:
        await reply.read()
        return reply.status, reply.headers["x-headway-worker"], reply.headers["x-headway-attempts"]


@pytest.mark.slow
async def test_requests_at_a_hung_engine_are_answered_elsewhere_and_it_comes_back(moody: RunningStack) -> None:
    timeout = aiohttp.ClientTimeout(total=RECOVERY_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with session.get(moody.url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        await asyncio.to_thread(order, moody, kind="hang")
        try:
            ends = await asyncio.gather(*(ask(session, moody, model, number) for number in range(REQUESTS)))
            assert {end[:2] for end in ends} == {(200, "worker-2")}, ends
            assert any(end[2] == "2" for end in ends), "none was sent to the hung one"
            table = await until_elsewhere(lambda: _alarmed(shown(moody)), what="the breaker of worker-1 in the table")
            assert "hung" in table or "TIMED_OUT" in table, table
            later = [await ask(session, moody, model, REQUESTS + number) for number in range(4)]
            assert {end[0] for end in later} == {200}, later
        finally:
            await asyncio.to_thread(order, moody, kind="clear")

        async def served() -> bool:
            return (await ask(session, moody, model, 0))[1] == "worker-1"

        await until(served, "worker-1 serves again", seconds_max=RECOVERY_S_MAX, poll_s=0.2)
    await until_elsewhere(lambda: no_reservations(moody), seconds_max=15, what="no reservation left")


@pytest.mark.slow
def test_an_engine_that_answers_nobody_has_an_alarm_within_seconds(moody: RunningStack) -> None:
    pid = moody.child_pids()["engine@" + engine_of(moody, 1).rpartition(":")[2]][0]
    os.kill(pid, signal.SIGSTOP)
    try:
        alarm = wait_until(lambda: status_of(moody, "worker-1").alarm, seconds_max=15, what="an alarm")
        assert "has not answered its agent" in alarm
        assert alarm in shown(moody) or "has not answered" in shown(moody)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not status_of(moody, "worker-1").alarm, seconds_max=RECOVERY_S_MAX, what="the alarm is gone")

"""`kill -9` of each part, one at a time, under load: the stack recovers by itself, and callers notice as little as can be.

A request that was streaming from a killed engine cannot be whole: it must end with an error event. Every other request must
be complete, whichever part died.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.stack import RunningStack, command_line, descendants, running_stack
from tests.waiting import until_elsewhere as until
from tests.waiting import wait_until

IN_FLIGHT = 12
RECOVERY_S_MAX = 40.0


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home"), "--speed", "4", "--processes", "1", workers=3) as running:
        yield running


class Load:
    """Keeps IN_FLIGHT streamed chats going, and files every end under what it was."""

    def __init__(self, url: str, model: str) -> None:
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self._url = url + "/v1/chat/completions"
        self._model = model
        self._stopping = asyncio.Event()
        self._progress = asyncio.Event()

    async def completed(self, more: int) -> None:
        """Returns once so many more requests have ended well."""
        goal = self.ends["complete"] + more
        while self.ends["complete"] < goal:
            self._progress.clear()
            await asyncio.wait_for(self._progress.wait(), RECOVERY_S_MAX)

    async def keep_going(self, session: aiohttp.ClientSession, caller: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            end = await self._one(session, f"caller {caller} asks question {turn}: what is {turn} times {caller}?")
            self.ends[end] += 1
            self._progress.set()

    def _body(self, text: str) -> dict[str, object]:
        return {
            "model": self._model,
            "messages": [{"role": "system", "content": "Answer briefly. " * 30}, {"role": "user", "content": text}],
            "max_tokens": 24,
            "ignore_eos": True,
            "stream": True,
        }

    async def _one(self, session: aiohttp.ClientSession, text: str) -> str:
        try:
            async with session.post(self._url, json=self._body(text)) as reply:
                if reply.status != 200:
                    self.problems.append(f"{reply.status}: {(await reply.text())[:300]}")
                    return f"status {reply.status}"
                raw = await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.problems.append(repr(error))
            return type(error).__name__
        if b'data: {"error"' in raw:
            return "error event"
        if not raw.rstrip().endswith(b"data: [DONE]"):
            self.problems.append(f"truncated: ...{raw[-200:]!r}")
            return "truncated"
        return "complete"

    def stop(self) -> None:
        self._stopping.set()


@asynccontextmanager
async def load_on(stack: RunningStack, *, url: str = "", kind: type[Load] = Load) -> AsyncIterator[Load]:
    """url: of another data plane than the stack's own."""
    url = url or stack.url
    timeout = aiohttp.ClientTimeout(total=RECOVERY_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        load = kind(url, model)
        callers = [asyncio.create_task(load.keep_going(session, number)) for number in range(IN_FLIGHT)]
        try:
            await load.completed(IN_FLIGHT)
            yield load
        finally:
            load.stop()
            await asyncio.wait_for(asyncio.gather(*callers), RECOVERY_S_MAX)


def all_alive(stack: RunningStack) -> bool:
    return len(stack.alive_workers()) == stack.workers


@pytest.mark.slow
async def test_a_killed_control_plane_costs_no_request(fragile: RunningStack) -> None:
    async with load_on(fragile) as load:
        killed = fragile.kill("controlplane")
        await load.completed(2 * IN_FLIGHT)
        await until(lambda: fragile.child_pids().get("controlplane", [killed]) != [killed], seconds_max=20, what="a new one")
        await until(lambda: all_alive(fragile), seconds_max=RECOVERY_S_MAX, what="it knows the fleet")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_a_killed_redis_costs_no_request(fragile: RunningStack) -> None:
    async with load_on(fragile) as load:
        killed = fragile.kill("redis")
        await load.completed(2 * IN_FLIGHT)
        await until(lambda: fragile.child_pids().get("redis", [killed]) != [killed], seconds_max=20, what="a new one")
        await until(
            lambda: fragile.list_workers().redis_connected and all_alive(fragile), seconds_max=RECOVERY_S_MAX, what="connected"
        )
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_a_killed_agent_takes_its_worker_out_and_back_in_and_costs_no_request(fragile: RunningStack) -> None:
    async with load_on(fragile) as load:
        agent = fragile.kill("agent-1")
        await until(lambda: fragile.child_pids().get("agent-1", [agent]) != [agent], seconds_max=20, what="a new agent")
        await until(lambda: all_alive(fragile), seconds_max=RECOVERY_S_MAX, what="three workers")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_a_silent_agent_takes_its_worker_out_within_its_ttl(fragile: RunningStack) -> None:
    (agent,) = fragile.child_pids()["agent-2"]
    async with load_on(fragile) as load:
        os.kill(agent, signal.SIGSTOP)
        try:
            await until(lambda: "worker-2" not in fragile.alive_workers(), seconds_max=10, what="worker-2 gone")
            await load.completed(2 * IN_FLIGHT)
        finally:
            os.kill(agent, signal.SIGCONT)
        await until(lambda: all_alive(fragile), seconds_max=RECOVERY_S_MAX, what="worker-2 back")
    assert set(load.ends) == {"complete"}, (load.ends, load.problems[:5])


@pytest.mark.slow
async def test_a_killed_engine_breaks_only_the_streams_it_was_writing(fragile: RunningStack) -> None:
    engine = next(name for name in fragile.child_pids() if name.startswith("engine@"))
    async with load_on(fragile) as load:
        killed = fragile.kill(engine)
        await load.completed(2 * IN_FLIGHT)
        await until(lambda: fragile.child_pids().get(engine, [killed]) != [killed], seconds_max=20, what="a new engine")
        await until(lambda: all_alive(fragile), seconds_max=RECOVERY_S_MAX, what="three workers")
        await load.completed(2 * IN_FLIGHT)
    assert set(load.ends) <= {"complete", "error event"}, (load.ends, load.problems[:5])
    assert load.ends["error event"] <= IN_FLIGHT


@pytest.mark.slow
def test_ending_the_supervisor_by_force_leaves_no_process_behind(tmp_path: Path) -> None:
    children: list[int] = []
    try:
        with running_stack(tmp_path, "--speed", "4", workers=1) as stack:
            wait_until(  # the trainer comes after the stack is up: nobody waits for it
                lambda: len(descendants(stack.process.pid)) == 6, seconds_max=30, what="Redis, planes, trainer, worker, agent"
            )
            children = descendants(stack.process.pid)
            stack.process.kill()
            stack.process.wait()
            started = time.monotonic()
            wait_until(lambda: not any(command_line(pid) for pid in children), seconds_max=10, what="all children gone")
            assert time.monotonic() - started < 10
    finally:
        for pid in children:
            if command_line(pid):
                os.kill(pid, signal.SIGKILL)

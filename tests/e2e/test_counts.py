"""What the control plane counts in flight is what is in flight: over several processes, and when one of them is killed."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

import aiohttp
import grpc
import pytest

from tests.e2e.stack import RunningStack
from tests.e2e.test_rolling import children_of, no_reservations, proxies
from tests.waiting import until_elsewhere as until

STREAMS = 24
TOKENS = 60_000
"""More than any of them will ever write."""
SETTLE_S_MAX = 25.0
"""The grace period of a broken stream's reservations is 4 s in this stack."""


@dataclass
class Open:
    """A stream that is being written; counted: the control plane placed it, in time; broken: it ended without its caller's
    doing."""

    session: aiohttp.ClientSession
    reading: asyncio.Task[None]
    counted: bool
    broken: bool = False

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.session.close()


async def open_stream(url: str, model: str, number: int) -> Open:
    """On a connection of its own, so that the kernel spreads them over the processes; returns with its first token."""
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
    body = {"model": model, "prompt": f"count {number}", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    reply = await session.post(f"{url}/v1/completions", json=body)
    assert reply.status == 200, await reply.text()
    await reply.content.readline()
    found = Open(session, asyncio.create_task(_read(reply)), "x-headway-fallback" not in reply.headers)
    found.reading.add_done_callback(lambda task: setattr(found, "broken", not task.cancelled()))
    return found


async def _read(reply: aiohttp.ClientResponse) -> None:
    try:
        async for line in reply.content:
            if line.startswith(b'data: {"error"'):
                return
    except aiohttp.ClientError:
        return


def counted(streams: list[Open]) -> int:
    """How many the control plane has to know of."""
    return sum(stream.counted and not stream.broken for stream in streams)


def active(stack: RunningStack) -> int:
    try:
        return sum(worker.active for worker in stack.list_workers().workers)
    except grpc.RpcError:
        return -1


@pytest.mark.slow
async def test_counts_are_exact_over_processes_and_after_one_is_killed(stack: RunningStack) -> None:
    async with proxies(stack) as fleet:
        parent = await fleet.start(processes=2, share=False)
        async with aiohttp.ClientSession() as session, session.get(fleet.url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        streams = [await open_stream(fleet.url, model, number) for number in range(STREAMS)]
        assert counted(streams) > STREAMS // 2
        await until(lambda: active(stack) == counted(streams), seconds_max=5, what=f"{counted(streams)} active")
        for _ in range(STREAMS // 4):
            await streams.pop().close()
        left = counted(streams)
        await until(lambda: active(stack) == left, seconds_max=5, what=f"{left} active")

        killed = children_of(parent.pid)[0]
        os.kill(killed, signal.SIGKILL)
        await until(lambda: any(stream.broken for stream in streams), seconds_max=5, what="its callers notice")
        await until(
            lambda: active(stack) == counted(streams) < left,
            seconds_max=SETTLE_S_MAX,
            what="its reservations are released, the other process's untouched",
        )
        assert counted(streams) > 0, "the kernel gave all connections to one process"

        for stream in streams:
            await stream.close()
        await until(lambda: no_reservations(stack), seconds_max=10, what="no reservation left")
        await fleet.end(parent)


@pytest.mark.slow
async def test_counts_are_exact_after_the_control_plane_was_killed(stack: RunningStack) -> None:
    """The new one hears from the data planes what they hold."""
    async with proxies(stack) as fleet:
        parent = await fleet.start(processes=2, share=False)
        async with aiohttp.ClientSession() as session, session.get(fleet.url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        streams = [await open_stream(fleet.url, model, number) for number in range(STREAMS)]
        killed = stack.kill("controlplane")
        await until(lambda: stack.child_pids().get("controlplane", [killed]) != [killed], seconds_max=20, what="a new one")
        expected = counted(streams)
        await until(lambda: active(stack) == expected, seconds_max=SETTLE_S_MAX, what=f"{expected} active")
        assert not any(stream.broken for stream in streams)
        for stream in streams:
            await stream.close()
        await until(lambda: no_reservations(stack), seconds_max=10, what="no reservation left")
        await fleet.end(parent)

"""Who polls is woken by what arrives, and by that once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import zmq

from tests.waiting import turns
from worker_agent.engine_info import EventEndpoint
from worker_agent.event_source import FRAMES_PER_POLL_MAX, EventSource

TURNS = 200
"""Of the event loop: an eternity for a descriptor that stays readable."""
WAIT_S = 10.0


class Publisher:
    """An engine's socket in the test's hand."""

    def __init__(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.XPUB)
        self._sent = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")

    def subscribed(self) -> None:
        assert self._socket.poll(WAIT_S * 1000)
        self._socket.recv()

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self._socket.send_multipart([b"", self._sent.to_bytes(8, "big"), b"payload %d" % self._sent])
            self._sent += 1

    def close(self) -> None:
        self._socket.close(linger=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher()
    yield made
    made.close()


@pytest.fixture
def source(publisher: Publisher) -> Iterator[EventSource]:
    made = EventSource((EventEndpoint(0, f"tcp://127.0.0.1:{publisher.port}"),), 0.0, virgin=True)
    publisher.subscribed()
    list(made.poll(0.0))
    yield made
    made.close()


class Alarm:
    def __init__(self) -> None:
        self.calls = 0
        self._rang = asyncio.Event()

    def ring(self) -> None:
        self.calls += 1
        self._rang.set()

    async def rang(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._rang.wait()
        self._rang.clear()


def payloads(source: EventSource) -> list[bytes]:
    return [payload for event in source.poll(0.0) if isinstance(event.what, list) for payload in event.what]


async def test_what_lies_there_wakes_once_until_it_is_polled(publisher: Publisher, source: EventSource) -> None:
    """A tick may pass before it is: the event loop must be able to rest meanwhile."""
    alarm = Alarm()
    source.on_arrival(alarm.ring)
    publisher.send()
    await alarm.rang()
    publisher.send()
    for _ in range(TURNS):
        await turns()
    assert alarm.calls == 1
    got = payloads(source)
    source.on_arrival(alarm.ring)
    while len(got) < 2:  # the second may still have been on its way
        await alarm.rang()
        got += payloads(source)
        source.on_arrival(alarm.ring)
    assert got == [b"payload 0", b"payload 1"]


async def test_asked_twice_it_still_wakes_once(publisher: Publisher, source: EventSource) -> None:
    alarm = Alarm()
    source.on_arrival(alarm.ring)
    source.on_arrival(alarm.ring)
    publisher.send()
    await alarm.rang()
    for _ in range(TURNS):
        await turns()
    assert alarm.calls == 1


async def test_a_connection_that_breaks_wakes(publisher: Publisher, source: EventSource) -> None:
    alarm = Alarm()
    source.on_arrival(alarm.ring)
    publisher.close()
    await alarm.rang()


async def test_a_flood_is_taken_in_bounded_parts_and_says_that_there_is_more(publisher: Publisher, source: EventSource) -> None:
    alarm = Alarm()
    publisher.send(FRAMES_PER_POLL_MAX + 1)
    got: list[bytes] = []
    while len(got) <= FRAMES_PER_POLL_MAX:
        source.on_arrival(alarm.ring)
        if not source.has_more:
            await alarm.rang()
        part = payloads(source)
        assert len(part) <= FRAMES_PER_POLL_MAX
        got += part
        assert source.has_more == (len(part) == FRAMES_PER_POLL_MAX)
    assert got == [b"payload %d" % number for number in range(FRAMES_PER_POLL_MAX + 1)]

"""Streams whose first token comes with the beginning of what follows: a read ends amid a chunk, and the next ones are usual."""

from __future__ import annotations

import pytest

from tests.dataplane.client import ask, chat, request
from tests.dataplane.conftest import Proxy
from tests.fakes.backend import LAST_CHUNK, STREAM_HEAD, Backend, Seen, Wire, chunk, delta, event, stream_events
from tests.waiting import turns

TEXTS = [*"abcdefgh"]
EVENTS = stream_events(TEXTS)


@pytest.mark.parametrize("cut", [1, 3, 20, -2, -1])
async def test_a_first_read_that_ends_amid_a_chunk(proxy: Proxy, backend: Backend, cut: int) -> None:
    torn = chunk(EVENTS[2])
    reads = [chunk(EVENTS[0]) + chunk(EVENTS[1]) + torn[:cut], torn[cut:], *map(chunk, EVENTS[3:]), LAST_CHUNK]

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for read in reads:
            await wire.send(read)
            await turns(20)

    backend.script(step)
    for _ in range(2):  # the second time on a connection that is known
        response = await ask(proxy.port, request(chat(stream=True)))
        assert response.text == "".join(TEXTS)
        assert response.body == b"".join(EVENTS)


async def test_a_first_event_longer_than_what_is_held(proxy: Proxy, backend: Backend) -> None:
    long = "x" * (proxy.app.settings.hold_bytes_max + 100_000)
    events = [EVENTS[0], event(delta(long)), *EVENTS[2:]]

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for each in events:
            await wire.send(chunk(each))
            await turns(20)
        await wire.send(LAST_CHUNK)

    backend.script(step)
    assert (await ask(proxy.port, request(chat(stream=True)))).body == b"".join(events)

"""Many streams at once: each gets its own bytes, all of them."""

from __future__ import annotations

import asyncio
import json

from tests.dataplane.client import Client, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.fakes.backend import STREAM_HEAD, Seen, Wire, chunk, delta, event, stream_events
from tests.fakes.control import Control
from tests.waiting import turns

STREAMS = 300
EVENTS = 12


async def _echo(seen: Seen, wire: Wire) -> None:
    """Streams the prompt back, word by word, interleaved with everybody else's."""
    prompt = json.loads(seen.body)["messages"][0]["content"]
    events = stream_events([f"{prompt}.{number} " for number in range(EVENTS)])
    await wire.send(STREAM_HEAD)
    for each in events:
        await wire.send(chunk(each))
        await turns()
    await wire.send(b"0\r\n\r\n")


async def test_hundreds_of_streams_at_once_are_complete_and_not_mixed_up(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    backends = [await start_backend() for _ in range(3)]
    for backend in backends:
        backend.script(_echo)
    control.serve("m", *(backend.url for backend in backends))
    proxy = await start_proxy(control=control, decision_timeout_ms=20_000)

    async def one(number: int) -> str:
        client = await Client.connect(proxy.port)
        await client.send(request(chat(f"stream-{number}", stream=True)))
        response = await client.read()
        client.close()
        assert response.complete
        assert response.events[-1] == "[DONE]"
        return response.text

    texts = await asyncio.gather(*map(one, range(STREAMS)))
    for number, text in enumerate(texts):
        assert text == "".join(f"stream-{number}.{part} " for part in range(EVENTS))
    await control.until(lambda control: len(control.outcomes) == STREAMS)
    assert len({outcome.decision_id for outcome in control.outcomes}) == STREAMS
    assert proxy.count("attempts", "complete") == STREAMS


async def test_requests_in_flight_at_the_end_may_finish(start_proxy: StartProxy, start_backend: StartBackend) -> None:
    backend = await start_backend()
    go_on = asyncio.Event()

    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD + chunk(event(delta("a"))))
        await go_on.wait()
        await wire.send(b"".join(map(chunk, stream_events(["b"])[1:])) + b"0\r\n\r\n")

    backend.script(step)
    proxy = await start_proxy(backend, drain_timeout_s=10.0, drain_idle_s=0.2)
    client, idle = await Client.connect(proxy.port), await Client.connect(proxy.port)
    await client.send(request(chat(stream=True)))
    async with asyncio.timeout(5):
        await client.reader.readuntil(b'"a"')
    stopping = asyncio.create_task(proxy.app.stop())
    assert await idle.at_end()
    go_on.set()
    async with asyncio.timeout(5):
        rest = await client.reader.read()
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await stopping
    client.close()
    idle.close()

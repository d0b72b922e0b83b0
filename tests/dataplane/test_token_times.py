"""When tokens came from an engine last goes to the control plane with the next questions, where its policy reads it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.features import INDEX
from contract.routing import numbered
from dataplane.engines import Engines
from dataplane.token_times import AGE_S_MAX, TokenTimes
from dataplane.upstream import UpstreamConnection, UpstreamPool
from runtime.clock import ManualClock, SystemClock
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import StartProxy
from tests.dataplane.test_accounts import connected, ends, fleet
from tests.fakes.backend import Backend, chat_json, chat_stream, chunk, delta, event
from tests.waiting import until


def test_what_came_is_told_once_as_ages_by_endpoint_number() -> None:
    now = 100.0
    engines = Engines()
    times = TokenTimes(lambda: now, engines)
    times.wanted = True
    numbers = {"http://a": 3, "http://b": 5}
    for url, at in (("http://a", 99.5), ("http://gone", 99.9), ("http://b", 100.0 - AGE_S_MAX)):
        engines[url].tokens_at = at
    assert times.told(numbers) == [(3, 0.5)]
    assert times.told(numbers) == []
    engines["http://b"].tokens_at = 100.0
    assert times.told(numbers) == [(5, 0.0)]


def test_each_rank_of_an_engine_has_a_time_of_its_own() -> None:
    clock = ManualClock()
    pool = UpstreamPool(clock=clock, idle_s=1.0, connect_timeout_s=1.0)
    pool.tokens.wanted = True
    engine = pool.engines["http://a:1"]
    streams = [UpstreamConnection(pool, "http://a:1") for _ in range(2)]
    for rank, stream in enumerate(streams):
        stream.passing, stream.steps = Passed(), engine.rank(rank)
        clock.advance(1.0)
        stream.data_received(chunk(event(delta("x"))))
    clock.advance(1.0)
    assert pool.tokens.told({"http://a:1": 4}) == [(numbered(4, 0), 2.0), (numbered(4, 1), 1.0)]
    assert pool.tokens.told({"http://a:1": 4}) == []
    pool.give(streams[1], clock.now())
    assert streams[1].steps is engine
    streams[0].data_received(chunk(event(delta("x"))))
    assert pool.tokens.told({}) == [], "an endpoint that nobody numbers"


class Passed:
    """A stream that is passed on."""

    def __init__(self) -> None:
        self.passed = 0
        self.last: deque[bytes] = deque(maxlen=1)
        self.write: Callable[[bytes], None] = self.last.append
        self.to = self.stream = None

    def take_passed(self, stream: object) -> None: ...


def test_one_stream_of_an_engine_keeps_the_time_until_it_is_told_or_falls_silent() -> None:
    clock = ManualClock()
    pool = UpstreamPool(clock=clock, idle_s=1.0, connect_timeout_s=1.0)
    pool.tokens.wanted = True
    engine = pool.engines["http://a:1"]
    streams = [UpstreamConnection(pool, "http://a:1") for _ in range(3)]
    for stream in streams:
        stream.passing = Passed()

    def comes(stream: UpstreamConnection) -> float:
        clock.advance(1.0)
        stream.data_received(chunk(event(delta("x"))))
        return clock.now()

    first, second, third = streams
    at = comes(first)
    comes(second)
    assert engine.tokens_at == at, "the first keeps the time"
    at = comes(first)
    assert engine.tokens_at == at
    assert pool.tokens.told({"http://a:1": 1}) == [(1, 0.0)]
    assert comes(second) == engine.tokens_at, "told: whoever comes next"
    second.pause()
    assert comes(third) == engine.tokens_at
    third.abort()
    assert comes(first) == engine.tokens_at
    pool.give(first, clock.now())
    second.connection_lost(None)
    assert engine.timekeeper is None


@pytest.mark.parametrize("policy", ["lmetric", "round_robin"])
async def test_the_next_decision_knows_when_tokens_came_last(
    start_proxy: StartProxy, backend: Backend, short_dir: Path, policy: str
) -> None:
    gates = {2: asyncio.Event(), 4: asyncio.Event()}
    reached = {index: asyncio.Event() for index in gates}

    async def pause(index: int) -> None:
        if index in gates:
            reached[index].set()
            await gates[index].wait()

    backend.script(chat_stream("abcdefgh", pause=pause), chat_json("fine"))
    async with fleet(short_dir, backend, policy=policy) as served:
        proxy = await connected(start_proxy, served)
        [endpoint] = served.plant.snapshot.endpoints()
        client = await Client.connect(proxy.port)
        await client.send(request(chat(stream=True)))
        await reached[2].wait()
        await until(lambda: endpoint.load.no_first_byte == 0 and endpoint.load.active == 1)
        mark = SystemClock.now()
        assert endpoint.load.moved_at <= mark, "the first token"
        gates[2].set()
        await reached[4].wait()
        if policy == "lmetric":
            engine = proxy.app.gateway.pool.engines[backend.url]
            await until(lambda: engine.tokens_at > mark)
        assert (await ask(proxy.port, request(chat()))).status == 200
        asked_at = SystemClock.now()
        gates[4].set()
        await until(lambda: len(ends(served)) == 2)
        age_s = served.plant.outcomes[0].features[INDEX["step_age_s"]]
        client.close()
    if policy == "lmetric":
        assert mark - 1e-3 < endpoint.load.token_at < asked_at, "tokens after the first, by the control plane's clock"
        assert 0 < age_s < asked_at - mark
    else:
        assert endpoint.load.token_at == 0.0, "nobody wants to know"

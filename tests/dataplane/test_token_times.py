"""When tokens came from an engine last goes to the control plane with the next questions, where its policy reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from contract.features import INDEX
from dataplane.token_times import AGE_S_MAX, TokenTimes
from runtime.clock import SystemClock
from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import StartProxy
from tests.dataplane.test_accounts import connected, ends, fleet
from tests.fakes.backend import Backend, chat_json, chat_stream
from tests.waiting import until


def test_what_came_is_told_once_as_ages_by_endpoint_number() -> None:
    now = 100.0
    times = TokenTimes(lambda: now)
    numbers = {"http://a": 3, "http://b": 5}
    times.at |= {"http://a": 99.5, "http://gone": 99.9, "http://b": 100.0 - AGE_S_MAX}
    assert times.told(numbers) == [(3, 0.5)]
    assert times.told(numbers) == []
    times.at["http://b"] = 100.0
    assert times.told(numbers) == [(5, 0.0)]


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
            times = proxy.app.gateway.pool.tokens
            await until(lambda: max(times.at.values(), default=0.0) > mark)
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

"""Several engines behind one port: who gets which request, what the page and the events say of each. The figures and refusals
are those of vLLM 0.32 with --data-parallel-size 2."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from emulator.__main__ import Emulator
from emulator.errors import ApiError
from emulator.ranks import NEWS_S, Ranks
from emulator.settings import Settings
from tests.emulator.conftest import Launch
from worker_agent.engine_metrics import parse

OUT_OF_RANGE = {
    "error": {
        "message": "data_parallel_rank 2 is out of range [0, 2).",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
}
WORDS = " ".join(f"word{number}" for number in range(200))


class _Value:
    def __init__(self) -> None:
        self.value = 0.0


class _Engine:
    """What the balancer reads of an engine."""

    def __init__(self) -> None:
        self.metrics = self
        self.waiting, self.running, self.usage = _Value(), _Value(), _Value()


def ranks_of(count: int) -> tuple[Ranks, list[_Engine]]:
    engines = [_Engine() for _ in range(count)]
    return Ranks(engines), engines  # type: ignore[arg-type]  # a driver as far as the balancer looks


async def complete(http: aiohttp.ClientSession, emulator: Emulator, rank: str | None = None, **body: Any) -> tuple[int, Any]:
    fields = {"model": emulator.app.model, "prompt": WORDS, "max_tokens": 2} | body
    headers = {} if rank is None else {"X-data-parallel-rank": rank}
    async with http.post(f"{emulator.url}/v1/completions", json=fields, headers=headers) as answer:
        return answer.status, await answer.json()


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_the_header_picks_the_rank_and_each_has_a_cache_of_its_own(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(data_parallel_size=2)
    _, first = await complete(http, emulator, "1")
    _, again = await complete(http, emulator, "1")
    _, elsewhere = await complete(http, emulator, "0")
    assert cached(first) == 0
    assert cached(again) > 0
    assert cached(elsewhere) == 0
    assert [driver.metrics.prompt_tokens.value for driver in emulator.app.ranks.drivers] == [
        first["usage"]["prompt_tokens"],
        2 * first["usage"]["prompt_tokens"],
    ]


async def test_a_rank_that_is_not_there_is_refused_and_no_number_is_no_wish(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    emulator = await launch(data_parallel_size=2)
    assert await complete(http, emulator, "2") == (400, OUT_OF_RANGE)
    assert (await complete(http, emulator, "-1"))[0] == 400
    assert (await complete(http, emulator, "x"))[0] == 200
    one = await launch()
    assert (await complete(http, one, "0"))[0] == 200
    assert (await complete(http, one, "1"))[0] == 400


async def test_a_stream_has_begun_when_the_rank_is_found_not_to_be_there(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(data_parallel_size=2)
    body = {"model": emulator.app.model, "prompt": "hello", "stream": True}
    async with http.post(f"{emulator.url}/v1/completions", json=body, headers={"X-data-parallel-rank": "2"}) as answer:
        text = await answer.text()
    assert answer.status == 200
    assert "data_parallel_rank 2 is out of range [0, 2)." in text
    assert text.endswith("data: [DONE]\n\n")


async def test_responses_are_balanced_whatever_the_header_says(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(data_parallel_size=2)
    body = {"model": emulator.app.model, "input": "hello", "max_output_tokens": 2}
    for _ in range(2):
        async with http.post(f"{emulator.url}/v1/responses", json=body, headers={"X-data-parallel-rank": "7"}) as answer:
            assert answer.status == 200
    assert all(driver.metrics.prompt_tokens.value for driver in emulator.app.ranks.drivers)


async def test_the_page_has_every_engine_and_an_agent_reads_it(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(data_parallel_size=2, num_blocks=100)
    await complete(http, emulator, "1")
    async with http.get(f"{emulator.url}/metrics") as answer:
        page = await answer.read()
    found = parse(page)
    assert found.ranks == 2
    assert found.cache.blocks == 200
    assert [figures.prompt_tokens for figures in found.by_rank] == [0, found.prompt_tokens]
    lines = page.decode().splitlines()
    assert len(lines) == len(set(lines)), "a series is there once"
    assert page.count(b"# TYPE vllm:num_requests_running ") == 1


async def test_each_rank_publishes_on_a_port_of_its_own_and_says_which_it_is(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    emulator = await launch(data_parallel_size=2)
    async with http.get(f"{emulator.url}/kv_event_sources") as answer:
        sources = await answer.json()
    assert sorted(sources) == ["0", "1"]
    assert sources["0"]["endpoint"] != sources["1"]["endpoint"]
    with zmq.asyncio.Context.instance().socket(zmq.DEALER) as socket:
        socket.connect(sources["1"]["replay_endpoint"])
        await complete(http, emulator, "1")
        await socket.send_multipart([b"", (0).to_bytes(8, "big")])
        async with asyncio.timeout(10):
            frames = await socket.recv_multipart()
        socket.setsockopt(zmq.LINGER, 0)
    assert msgspec.msgpack.decode(frames[-1])[2] == 1


def test_settings_bound_the_ranks_and_their_ports() -> None:
    with pytest.raises(ValueError, match="--data-parallel-size: 0 is not between 1 and 64"):
        Settings(data_parallel_size=0).check()
    with pytest.raises(ValueError, match="65536"):
        Settings(data_parallel_size=2, kv_events_port=65_535).check()


class TestBalancing:
    def test_equals_take_turns(self) -> None:
        ranks, _ = ranks_of(3)
        assert [ranks.choose(None, 0.0) for _ in range(6)] == [0, 1, 2, 0, 1, 2]

    def test_who_has_more_inside_gets_less(self) -> None:
        ranks, _ = ranks_of(2)
        for _ in range(4):
            ranks.choose(0, 0.0)
        assert [ranks.choose(None, 0.0) for _ in range(3)] == [1, 1, 1]

    def test_what_the_engines_say_is_news_only_now_and_then(self) -> None:
        ranks, engines = ranks_of(2)
        ranks.choose(None, 0.0)
        engines[1].running.value = 50
        assert 1 in {ranks.choose(None, 0.01) for _ in range(2)}
        assert {ranks.choose(None, NEWS_S + 0.01) for _ in range(8)} == {0}

    @given(st.lists(st.sampled_from(["any", "0", "1", "2", "end"])), st.integers(1, 3))
    def test_what_is_inside_is_never_below_nothing_and_ends_at_nothing(self, steps: list[str], count: int) -> None:
        ranks, _ = ranks_of(count)
        inside: list[int] = []
        for at, step in enumerate(steps):
            if step == "end":
                if inside:
                    ranks.ended(inside.pop())
                continue
            try:
                rank = ranks.named(None if step == "any" else step)
            except ApiError:
                assert int(step) >= count
                continue
            inside.append(ranks.choose(rank, at / 100))
            assert rank is None or inside[-1] == rank
        for rank in inside:
            ranks.ended(rank)
        turn = sum(step == "any" for step in steps)  # each choice of its own moves it
        again = [ranks.choose(None, 1e6 + at) for at in range(count)]
        assert again == [(turn + at) % count for at in range(count)], "empty again, it goes round as at the start"


async def test_one_rank_hangs_while_the_other_answers(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(data_parallel_size=2)
    faults = f"{emulator.url}/emulator/faults"
    for body in ({"kind": "hang", "rank": 2}, {"kind": "hang", "rank": -1}, {"kind": "slow", "rank": 1}):
        async with http.post(faults, json=body) as answer:
            assert answer.status == 400, body
    async with http.post(faults, json={"kind": "hang", "rank": 1}) as answer:
        assert answer.status == 200
    waits = asyncio.create_task(complete(http, emulator, "1"))
    for _ in range(3):
        assert (await complete(http, emulator, "0"))[0] == 200
    assert not waits.done()
    async with http.post(faults, json={"kind": "clear"}) as answer:
        assert answer.status == 200
    assert (await waits)[0] == 200

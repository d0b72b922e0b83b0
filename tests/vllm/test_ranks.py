"""One real vLLM server with two data-parallel ranks: each turn comes back to the rank that holds its beginning, and the engine
finds there what was predicted. And what the emulator imitates is what the server does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from proto import fleet_pb2
from tests.e2e.stack import RunningStack, running_stack
from tests.ports import free_ports
from tests.vllm.chats import converse
from tests.vllm.engines import TOKENIZER, Engine
from tests.waiting import wait_until

REQUESTS = 150
EQUAL_MIN = 0.99
RANKS = ("--no-lora", "--blocks", "400", "--", "--data-parallel-size", "2", "--api-server-count", "1")
OUT_OF_RANGE = "data_parallel_rank 2 is out of range [0, 2)."


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(free_ports(1), *RANKS)
    try:
        made.start()
        made.wait_up()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    flags = ("--engine", engine.url, "--tokenizer", str(TOKENIZER), "--policy", "lmetric")
    with running_stack(tmp_path_factory.mktemp("home"), *flags, workers=1) as running:
        wait_until(lambda: "tokenizer ready" in running.log(), seconds_max=60, what="the tokenizer is loaded")
        wait_until(
            lambda: [rank.index for rank in ranks(running)] == [fleet_pb2.EXACT] * 2, seconds_max=15, what="both are exact"
        )
        yield running


def ranks(running: RunningStack) -> list[fleet_pb2.RankStatus]:
    (status,) = running.list_workers().workers
    return list(status.ranks)


async def test_each_rank_finds_what_was_predicted_of_it(stack: RunningStack) -> None:
    results = await converse(stack.url, REQUESTS, seed=5, at_once=6, free=False)
    equal = sum(result.predicted == result.cached for result in results) / len(results)
    found = sum(result.cached for result in results) / sum(result.prompt_tokens for result in results)
    alone = sum(not result.decision_id for result in results)
    print(f"\n{len(results)} turns, {equal:.1%} predicted to the token, {found:.1%} of prompt tokens found in a cache;")
    print(f"  {alone} placed by the fallback; others: {[(r.predicted, r.cached) for r in results if r.predicted != r.cached]}")
    assert sum(result.cached for result in results) > 20 * len(results), "hardly anything was shared: this run proves nothing"
    assert equal >= EQUAL_MIN
    wait_until(lambda: all(rank.active == 0 for rank in ranks(stack)), seconds_max=5, what="nothing counted at any rank")
    assert all(rank.requests > len(results) / 4 for rank in ranks(stack)), "both had their share"


async def answer(engine: Engine, path: str, rank: str, **fields: Any) -> tuple[int, str]:
    body = {"model": "tiny", "max_tokens": 2, **fields}
    headers = {"X-data-parallel-rank": rank}
    async with aiohttp.ClientSession() as session, session.post(engine.url + path, json=body, headers=headers) as reply:
        return reply.status, await reply.text()


async def test_the_server_refuses_as_the_emulator_does(engine: Engine) -> None:
    messages = [{"role": "user", "content": "hi"}]
    status, text = await answer(engine, "/v1/chat/completions", "2", messages=messages)
    assert (status, OUT_OF_RANGE in text) == (400, True)
    status, text = await answer(engine, "/v1/chat/completions", "2", messages=messages, stream=True)
    assert (status, OUT_OF_RANGE in text, text.endswith("data: [DONE]\n\n")) == (200, True, True)
    assert (await answer(engine, "/v1/completions", "x", prompt="hi"))[0] == 200
    assert (await answer(engine, "/v1/messages", "2", messages=messages))[0] == 400
    assert (await answer(engine, "/v1/responses", "2", input="hi", max_output_tokens=2))[0] == 200

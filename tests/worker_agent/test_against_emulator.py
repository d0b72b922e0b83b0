"""The agent against `python -m emulator`: what a reader believes equals what the engine says it reused."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as aioredis

from contract import blocks, keyspace
from contract.keyspace import EngineState
from runtime.clock import SystemClock
from tests.suites.block_reader import BlockReader
from tests.waiting import until
from tests.worker_agent.conftest import WAIT_S
from worker_agent.agent import Agent
from worker_agent.engine_client import EngineClient
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings

ROOT = Path(__file__).parents[2]


class Emulator:
    """One process, to kill and to start again on the same ports."""

    def __init__(self) -> None:
        self.arguments = ["--port", "0", "--speed", "20", "--log-level", "info"]
        self.url = ""
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "emulator", *self.arguments, cwd=ROOT, stderr=asyncio.subprocess.PIPE
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(WAIT_S):
            while not (found := re.search(rb"ready: (http://[\d.]+:(\d+))", await self._process.stderr.readline())):
                pass
        self.url = found[1].decode()
        self.arguments[1] = found[2].decode()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    made = Emulator()
    await made.start()
    yield made
    await made.kill()


async def complete(session: aiohttp.ClientSession, url: str, tokens: list[int]) -> int:
    """Tokens that the engine found in its cache."""
    body = {"model": "tiny", "prompt": tokens, "max_tokens": 1}
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        usage: dict[str, Any] = (await answer.json())["usage"]
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def matched(held: set[int], tokens: list[int], block_size: int) -> int:
    """Tokens of the prompt that the view credits; the last one is always computed."""
    chain = blocks.chain(blocks.pack_tokens(tokens[:-1]), block_size, blocks.root_hash("tiny"))
    return block_size * len(list(itertools.takewhile(held.__contains__, chain)))


async def test_the_view_predicts_what_the_engine_reuses_and_survives_its_death(redis_url: str, emulator: Emulator) -> None:
    config = Settings(worker="w1", engine_url=emulator.url, redis_url=redis_url, scrape_interval_ms=50)
    client, publisher = EngineClient(emulator.url), Publisher(redis_url, "w1", ids=random.Random(3))
    epochs = itertools.count(1)
    agent = Agent(config, client, publisher, SystemClock(), lambda: next(epochs))
    tasks = [asyncio.create_task(loop()) for loop in (agent.scrape_forever, agent.follow_forever, agent.publish_forever)]
    redis = aioredis.Redis.from_url(redis_url)
    try:
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(agent.registered.wait(), WAIT_S)
            reader = BlockReader(redis, "w1")
            assert agent.record is not None
            size = agent.record.block_size
            chance = random.Random(5)
            documents = [[chance.randrange(300, 4000) for _ in range(6 * size)] for _ in range(3)]
            seen: set[int] = set()
            for turn in range(12):
                document = documents[turn % 3]
                prompt = document[: size * chance.randint(2, 6)] + [chance.randrange(300, 4000) for _ in range(size + 7)]
                expected = matched(reader.gpu, prompt, size)
                assert await complete(session, emulator.url, prompt) == expected
                seen |= set(blocks.chain(blocks.pack_tokens(prompt), size, blocks.root_hash("tiny")))
                await until(has_at_least(reader, seen), "the blocks of the last prompt")
            await emulator.kill()
            await emulator.start()

            async def back() -> bool:
                entries = await redis.xrevrange(keyspace.REPORTS, count=1)
                report = keyspace.decode_report(entries[0][1][keyspace.REPORT_FIELD])
                return report.state == EngineState.READY and report.epoch > 1

            await until(back, "READY in a new epoch")
            await reader.read()
            assert reader.gpu.isdisjoint(seen), "blocks of the dead engine are still credited"
            assert await complete(session, emulator.url, documents[0]) == 0
            seen = set(blocks.chain(blocks.pack_tokens(documents[0]), size, blocks.root_hash("tiny")))
            await until(has_at_least(reader, seen), "the blocks of the new engine")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        agent.close()
        await publisher.close()
        await client.__aexit__(None, None, None)
        await redis.aclose()


def has_at_least(reader: BlockReader, expected: set[int]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        await reader.read()
        return reader.gpu >= expected

    return holds

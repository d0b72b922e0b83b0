"""An agent as it runs in production, in this process: a fake engine on one side, a real Redis on the other."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

from contract import blocks, keyspace
from contract.keyspace import EngineReport, WorkerRecord
from runtime.clock import SystemClock
from tests.fakes.engine import BLOCK, FakeEngine
from tests.suites.block_reader import BlockReader
from tests.waiting import until
from worker_agent.agent import Agent
from worker_agent.engine_client import EngineClient
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vllm"
WAIT_S = 10.0


def payloads(name: str) -> list[tuple[int, bytes]]:
    """(sequence, payload) of a recording of KV events."""
    lines = (FIXTURES / "kv_events" / f"{name}.jsonl").read_text().splitlines()
    frames = [[bytes.fromhex(frame) for frame in json.loads(line)["frames"]] for line in lines]
    return [(int.from_bytes(parts[-2], "big"), parts[-1]) for parts in frames]


def page(name: str) -> bytes:
    return (FIXTURES / "metrics" / f"{name}.txt").read_bytes()


@dataclass
class Rig:
    """One engine, one Redis, and agents between them."""

    engine: FakeEngine
    url: str
    client: aioredis.Redis
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    agent: Agent | None = None

    async def start(self, **settings: Any) -> Agent:
        """An agent, registered."""
        agent = await self.start_unregistered(**settings)
        await asyncio.wait_for(agent.registered.wait(), WAIT_S)
        return agent

    async def start_unregistered(self, **settings: Any) -> Agent:
        config = Settings(
            **{"worker": "w1", "engine_url": self.engine.url, "redis_url": self.url, "scrape_interval_ms": 20, **settings}
        )
        config.check()
        epochs = itertools.count(100)
        publisher = Publisher(self.url, config.worker, ids=random.Random(7))
        client = EngineClient(config.engine_url)
        agent = Agent(config, client, publisher, SystemClock(), lambda: next(epochs))
        self.tasks += [
            asyncio.create_task(loop()) for loop in (agent.scrape_forever, agent.follow_forever, agent.publish_forever)
        ]

        async def close() -> None:
            agent.close()
            await publisher.close()
            await client.__aexit__(None, None, None)

        self.closers.append(close)
        self.agent = agent
        return agent

    async def kill(self) -> None:
        """The agents stop where they are."""
        for task in self.tasks:
            task.cancel()
        for result in await asyncio.gather(*self.tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), f"a loop of the agent ended: {result!r}"
        self.tasks.clear()
        for close in self.closers:
            await close()
        self.closers.clear()

    def reader(self) -> BlockReader:
        return BlockReader(self.client, "w1")

    async def record(self) -> WorkerRecord | None:
        data = await self.client.get(keyspace.worker_key("w1"))
        return keyspace.decode_worker(data) if data else None

    async def registered(self) -> None:
        """Returns once there is a record, which may have lapsed for a moment where its time to live is short."""

        async def there() -> bool:
            return await self.record() is not None

        await until(there, "the registration")

    async def report(self) -> EngineReport | None:
        """The newest."""
        entries = await self.client.xrevrange(keyspace.REPORTS, count=1)
        return keyspace.decode_report(entries[0][1][keyspace.REPORT_FIELD]) if entries else None

    async def reported(self, holds: Callable[[EngineReport], bool], what: str) -> EngineReport:
        async def check() -> bool:
            report = await self.report()
            return report is not None and holds(report)

        await until(check, what)
        report = await self.report()
        assert report is not None
        return report

    async def reaches(self, reader: BlockReader, expected: set[int], *, epoch: int | None = None) -> None:
        """The reader arrives at exactly these blocks on rank 0's GPU."""

        async def check() -> bool:
            await reader.read()
            return reader.synced and reader.gpu == expected and epoch in (None, reader.epoch)

        await until(check, f"a reader with {len(expected)} blocks (it has {len(reader.gpu)}, epoch {reader.epoch})")


def prompt(number: int, n_blocks: int) -> list[int]:
    """Token ids of `n_blocks` full blocks, another text for each number."""
    return [1000 * number + position for position in range(n_blocks * BLOCK)]


def hashes(tokens: list[int], **root: str) -> set[int]:
    """What the data plane would ask for."""
    return set(blocks.chain(blocks.pack_tokens(tokens), BLOCK, blocks.root_hash("tiny", **root)))


async def make_rig(engine: FakeEngine, url: str) -> AsyncIterator[Rig]:
    await engine.start()
    client = aioredis.Redis.from_url(url)
    rig = Rig(engine, url, client)
    yield rig
    await rig.kill()
    await client.aclose()
    await engine.close()


@pytest.fixture
async def rig(redis_url: str) -> AsyncIterator[Rig]:
    async for made in make_rig(FakeEngine(), redis_url):
        yield made


@pytest.fixture
async def rig_of_two_ranks(redis_url: str) -> AsyncIterator[Rig]:
    async for made in make_rig(FakeEngine(ranks=2), redis_url):
        yield made


@pytest.fixture
async def forgetful_rig(redis_url: str) -> AsyncIterator[Rig]:
    """Its engine replays the last two payloads only."""
    async for made in make_rig(FakeEngine(buffer_steps=2), redis_url):
        yield made


@pytest.fixture
async def rig_on_own_redis(own_redis: Any) -> AsyncIterator[Rig]:
    async for made in make_rig(FakeEngine(), own_redis.url):
        yield made

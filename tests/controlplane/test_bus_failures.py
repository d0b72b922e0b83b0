"""Redis restarted, flushed, cut off, stalled or slow: decisions go on, and soon after its return the index is exact again.

Nothing here is imitated but the engines and the network: real agents follow (fake) engines and publish to a real Redis, by way
of a proxy that a test can cut, and a real ingest, snapshot, index and director read from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from array import array
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from contract import blocks
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from controlplane.question import Decision, Question, Request
from headway.embedded_redis import RedisServer
from runtime.clock import SystemClock
from tests.controlplane.parts import Plant
from tests.fakes.engine import BLOCK, FakeEngine
from tests.fakes.tcp_proxy import TcpProxy
from worker_agent.agent import Agent
from worker_agent.engine_client import EngineClient
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings

EXACT_WITHIN_S = 5.0
PROMPT_BLOCKS = 8
TICK_S = 0.25


class Site:
    """One worker: an engine, what it truly holds, and its agent."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.engine = FakeEngine()
        self.held: set[int] = set()
        self._chance = random.Random(seed)
        self._stored: list[tuple[list[int], set[int]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._publisher: Publisher | None = None
        self._client: EngineClient | None = None
        self.agent: Agent | None = None

    async def start(self, redis_url: str) -> None:
        await self.engine.start()
        config = Settings(worker=self.name, engine_url=self.engine.url, redis_url=redis_url, scrape_interval_ms=50)
        epochs = itertools.count(self._chance.getrandbits(40))
        self._publisher = Publisher(redis_url, self.name, ids=self._chance)
        self._client = EngineClient(config.engine_url)
        self.agent = Agent(config, self._client, self._publisher, SystemClock(), lambda: next(epochs))
        loops = (self.agent.scrape_forever, self.agent.follow_forever, self.agent.publish_forever)
        self._tasks = [asyncio.create_task(loop()) for loop in loops]
        await asyncio.wait_for(self.agent.registered.wait(), EXACT_WITHIN_S)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.agent is not None and self._publisher is not None and self._client is not None:
            self.agent.close()
            await self._publisher.close()
            await self._client.__aexit__(None, None, None)
        await self.engine.close()

    async def work(self) -> None:
        """One step of the engine: a prompt comes in, and now and then an old one is evicted."""
        tokens = [self._chance.randrange(2**31) for _ in range(PROMPT_BLOCKS * BLOCK)]
        chain = set(blocks.chain(blocks.pack_tokens(tokens), BLOCK, blocks.root_hash("tiny")))
        events = [self.engine.stored(tokens)]
        self._stored.append((self.engine.names(tokens), chain))
        self.held |= chain
        if len(self._stored) > 4:
            names, gone = self._stored.pop(self._chance.randrange(len(self._stored)))
            events.append(self.engine.removed(*names))
            self.held -= gone
        await self.engine.ranks[0].send(*events)


class World:
    """Two sites, a Redis behind a proxy, a control plane."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.proxy = TcpProxy(directory / "redis.sock")
        self.sites = [Site("w1", 1), Site("w2", 2)]
        self.plant = Plant(0)
        self.clock = SystemClock()
        self.decisions = 0
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.proxy.start()
        url = f"redis://127.0.0.1:{self.proxy.port}/0"
        self.ingest = Ingest(url, self.plant.snapshot, self.plant.index, self.clock, rng=random.Random(1))
        self._reading = asyncio.create_task(self.ingest.run())
        for site in self.sites:
            await site.start(url)
        await self.settle()

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as parts:  # whatever the start came to, and whichever of them fails
            parts.push_async_callback(self.proxy.cut)
            for site in self.sites:
                parts.push_async_callback(site.close)
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.gather(self._reading, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------- looking

    def agrees(self, site: Site) -> bool:
        """EXACT, every block of the engine is there, and no other."""
        index, slot = self.plant.index, self.plant.snapshot.slot_of(site.name)
        if slot is None or index.state(slot) is not IndexState.EXACT or index.blocks(slot) != len(site.held):
            return False
        return all(index.match(array("Q", [block])).get(slot) == 1 for block in site.held)

    def decide(self) -> None:
        """A prompt is placed, whatever the bus does."""
        chain = array("Q", itertools.islice(self.sites[0].held, 4))
        question = Question(Request(model="tiny", input_tokens=100), {BLOCK: chain})
        decision = self.plant.director.decide(question, self.clock.now())
        assert isinstance(decision, Decision), decision
        self.decisions += 1

    async def step(self, *, work: bool) -> None:
        for site in self.sites if work else ():
            await site.work()
        now = self.clock.now()
        if now >= self._tick_at:
            self._tick_at = now + TICK_S
            heard = self.ingest.connected and now - self.ingest.last_word_at < 0.5
            self.plant.director.tick(now, connected=heard)
        self.plant.index.expire(now)
        await asyncio.sleep(0.01)  # a step of a site: real time, since Redis, its faults and their time limits live in it

    _tick_at = 0.0

    # -------------------------------------------------------------------------------------------------------- passing

    async def settle(self) -> float:
        """Returns (seconds) once the index is exactly what the engines hold; the bound is the promise under test."""
        began = self.clock.now()
        while not all(self.agrees(site) for site in self.sites):
            took_s = self.clock.now() - began
            states = [(site.name, len(site.held), self.plant.snapshot.slot_of(site.name)) for site in self.sites]
            assert took_s < EXACT_WITHIN_S, f"not exact within {EXACT_WITHIN_S} s: {states}"
            await self.step(work=False)
        return self.clock.now() - began

    async def live(self, seconds: float = 0.0, *, until: Callable[[], bool] = lambda: True) -> None:
        """Engines work and decisions are asked for, for so long and until this holds."""
        end, bound = self.clock.now() + seconds, self.clock.now() + seconds + EXACT_WITHIN_S
        while self.clock.now() < end or not until():
            assert self.clock.now() < bound, "not within the bound"
            await self.step(work=True)
            self.decide()


@pytest.fixture
async def world(own_redis: RedisServer, short_dir: Path) -> AsyncIterator[World]:
    made = World(own_redis, short_dir)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def test_redis_killed_and_started_again_empty(world: World) -> None:
    await world.live(0.3)
    await asyncio.to_thread(world.server.kill)
    await world.live(until=lambda: not world.ingest.connected)
    await world.live(0.3)
    await asyncio.to_thread(world.server.start)
    await world.settle()
    await world.live(until=lambda: world.ingest.connected)
    await world.settle()


async def test_redis_flushed(world: World) -> None:
    await world.live(0.3)
    async with aioredis.Redis.from_url(world.server.url) as client:
        await client.flushall()
    await world.live(0.2)
    await world.settle()
    world.decide()


async def cut_off(world: World, seconds: float) -> None:
    await world.live(0.3)
    await world.proxy.cut()
    await world.live(seconds, until=lambda: not world.ingest.connected)
    await world.proxy.start()
    await world.settle()
    world.decide()


async def test_redis_cut_off_for_a_moment(world: World) -> None:
    await cut_off(world, 0.5)


@pytest.mark.slow
async def test_redis_cut_off_for_30_s(world: World) -> None:
    await cut_off(world, 30.0)
    assert world.decisions > 300


async def stalled(world: World, seconds: float) -> None:
    await world.live(0.3)
    world.proxy.stall()
    await world.live(seconds)
    world.proxy.flow()
    await world.settle()
    world.decide()


async def test_redis_silent_for_a_moment_on_connections_that_stay_open(world: World) -> None:
    await stalled(world, 1.0)


@pytest.mark.slow
async def test_redis_silent_for_30_s_on_connections_that_stay_open(world: World) -> None:
    await stalled(world, 30.0)


async def test_redis_that_answers_200_ms_late_is_only_late(world: World) -> None:
    world.proxy.reply_delay_s = 0.2
    await world.live(1.5)
    await world.settle()
    world.proxy.reply_delay_s = 0.0
    await world.live(0.2)
    await world.settle()


async def test_an_engine_that_restarts_while_redis_is_away_leaves_nothing_behind(world: World) -> None:
    site = world.sites[0]
    await world.live(0.3)
    dead = set(site.held)
    await world.proxy.cut()
    await world.live(until=lambda: not world.ingest.connected)
    await site.engine.restart()
    site.held.clear()
    site._stored.clear()
    await world.proxy.start()
    await world.settle()
    slot = world.plant.snapshot.slot_of(site.name)
    assert all(slot not in world.plant.index.match(array("Q", [block])) for block in dead)

"""From the bus into snapshot and index: blocks of each rank belong to its own endpoint, and come and go with the engine."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contract.keyspace import DeltaFlag
from controlplane import ranks
from controlplane.breaker import BreakerBounds
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from controlplane.ledger import Ledger
from controlplane.prefix_index import PrefixIndex
from controlplane.snapshot import FleetSnapshot
from runtime.clock import SystemClock
from tests.fakes.agent import FakeAgent
from tests.waiting import until


class Plane:
    """An ingest at work on a real snapshot."""

    def __init__(self, url: str, steering: ranks.Steering) -> None:
        self.snapshot = FleetSnapshot(Ledger(), BreakerBounds(), steering)
        self.index = PrefixIndex()
        self.ingest = Ingest(url, self.snapshot, self.index, SystemClock(), rng=random.Random(1))

    def matched(self, *chain: int) -> dict[str, int]:
        """Endpoint name -> blocks."""
        found = self.index.match(array("Q", chain))
        return {endpoint.name: found[endpoint.slot] for endpoint in self.snapshot.endpoints() if endpoint.slot in found}

    def exact(self, count: int) -> bool:
        endpoints = self.snapshot.endpoints()
        return len(endpoints) == count and all(self.index.state(one.slot) is IndexState.EXACT for one in endpoints)


@asynccontextmanager
async def plane_on(url: str, steering: ranks.Steering = ranks.steered) -> AsyncIterator[Plane]:
    plane = Plane(url, steering)
    task = asyncio.create_task(plane.ingest.run())
    try:
        yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_blocks_of_a_rank_are_credited_to_it_alone(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", ranks=2)
    agent.begin()
    async with plane_on(redis_url) as plane:
        await until(lambda: plane.exact(2), "both ranks exact")
        agent.delta([1, 2, 3], rank=0)
        agent.delta([1, 2, 3, 4], rank=1)
        await until(lambda: plane.matched(1, 2, 3, 4, 5) == {"w/0": 3, "w/1": 4}, "what each rank holds")
        agent.delta(removed=[2], rank=1)
        await until(lambda: plane.matched(1, 2, 3, 4, 5) == {"w/0": 3, "w/1": 1}, "one removed at one rank")
        agent.delta(flags=DeltaFlag.CLEAR, rank=0)
        await until(lambda: plane.matched(1, 2, 3, 4, 5) == {"w/1": 1}, "the other cleared")


async def test_an_engine_that_is_not_steered_earns_the_best_of_its_ranks(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", ranks=2)
    agent.begin()
    async with plane_on(redis_url, ranks.together) as plane:
        await until(lambda: plane.exact(1), "exact")
        agent.delta([1, 2, 3], rank=0)
        agent.delta([1, 2, 3, 4], rank=1)
        await until(lambda: plane.matched(1, 2, 3, 4, 5) == {"w": 4}, "the best of the two")


async def test_another_run_with_other_ranks_is_credited_with_nothing_of_the_one_before(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", ranks=3)
    agent.begin()
    async with plane_on(redis_url) as plane:
        await until(lambda: plane.exact(3), "all ranks exact")
        for rank in range(3):
            agent.delta([1, 2], rank=rank)
        await until(lambda: len(plane.matched(1, 2)) == 3, "blocks of all")
        agent.ranks = 2
        agent.restart(epoch=2)
        agent.report()

        def forgotten() -> bool:
            agent.report()
            plane.snapshot.tick(SystemClock().now(), connected=True)
            return plane.exact(2) and not plane.matched(1, 2)

        await until(forgotten, "two ranks, both empty")
        agent.delta([1], rank=1)
        await until(lambda: plane.matched(1, 2) == {"w/1": 1}, "the new run's own")

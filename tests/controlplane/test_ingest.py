"""Ingest against a real Redis: whatever happens to the bus, the index is exact again, and never credits the dead."""

from __future__ import annotations

import asyncio
import itertools
import random
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from contract import keyspace
from contract.keyspace import DeltaFlag, EngineReport, EngineState, Tier, WorkerRecord
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from controlplane.prefix_index import PrefixIndex
from headway.embedded_redis import RedisServer
from runtime.clock import SystemClock
from tests.fakes.agent import FakeAgent
from tests.waiting import until

EXACT_WITHIN_S = 5.0


class Fleet:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        self.records: dict[str, WorkerRecord] = {}
        self.reports: list[EngineReport] = []
        self.left: list[str] = []

    def worker_registered(self, record: WorkerRecord, now: float) -> int:
        self.records[record.worker] = record
        return self.slots.setdefault(record.worker, len(self.slots))

    def worker_reported(self, report: EngineReport, now: float) -> None:
        self.reports.append(report)

    def worker_left(self, worker: str, now: float) -> None:
        self.left.append(worker)

    def slots_of(self, worker: str) -> tuple[int, ...]:
        return (self.slots[worker],) if worker in self.slots else ()


class Plane:
    """An ingest at work, and questions about what it has learned."""

    def __init__(self, url: str) -> None:
        self.fleet = Fleet()
        self.index = PrefixIndex()
        self.ingest = Ingest(url, self.fleet, self.index, SystemClock(), rng=random.Random(1))

    def matched(self, worker: str, *chain: int) -> int:
        slot = self.fleet.slots.get(worker)
        return 0 if slot is None else self.index.match(array("Q", chain)).get(slot, 0)

    def state(self, worker: str) -> IndexState:
        slot = self.fleet.slots.get(worker)
        return IndexState.UNSPECIFIED if slot is None else self.index.state(slot)

    def agrees(self, agent: FakeAgent) -> bool:
        """EXACT, and every block of the agent's set is there, and no other."""
        slot = self.fleet.slots.get(agent.worker)
        if slot is None or self.index.state(slot) is not IndexState.EXACT or self.index.blocks(slot) != len(agent.blocks):
            return False
        return all(self.index.match(array("Q", [block])).get(slot) == 1 for block in agent.blocks)

    async def until(self, condition: Callable[[], bool], *agents: FakeAgent) -> None:
        """Agents answer requests for snapshots and report meanwhile, as real ones do."""

        def met() -> bool:
            if condition():
                return True
            for agent in agents:
                if agent.asked():
                    agent.snapshot()
                agent.report()
            self.index.expire(asyncio.get_running_loop().time())
            return False

        await until(met, seconds_max=EXACT_WITHIN_S, poll_s=0.01)


@asynccontextmanager
async def plane_on(url: str) -> AsyncIterator[Plane]:
    plane = Plane(url)
    task = asyncio.create_task(plane.ingest.run())
    try:
        yield plane
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_cold_control_plane_reads_snapshots_and_then_follows_the_streams(redis_url: str) -> None:
    agents = [FakeAgent(redis_url, f"w{number}") for number in range(3)]
    for number, agent in enumerate(agents):
        agent.delta(range(1, 100 + number))
        agent.register()
        agent.snapshot(chunk_blocks=17)
        agent.delta([1_000, 1_001], [50])
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.ingest.warm and all(plane.agrees(agent) for agent in agents), *agents)
        assert plane.ingest.connected
        assert plane.matched("w0", *range(1, 60)) == 49
        agents[0].delta([50])
        await plane.until(lambda: plane.matched("w0", *range(1, 60)) == 59, agents[0])


async def test_a_worker_that_joins_later_is_found_by_its_report(redis_url: str) -> None:
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.ingest.warm)
        agent = FakeAgent(redis_url, "late")
        agent.delta([1, 2, 3])
        agent.begin()
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.fleet.reports[-1].worker == "late"


async def test_a_hole_in_the_stream_costs_all_credit_until_a_new_snapshot_is_in(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1, 2, 3, 4])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.delta(removed=[2], send=False)
        agent.delta([5])
        await plane.until(lambda: plane.state("w") is IndexState.CATCHING_UP)
        assert plane.matched("w", 1, 2, 3, 4, 5) == 0
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.matched("w", 1, 2, 3, 4, 5) == 1
        assert plane.ingest.holes >= 1


async def test_deltas_lost_at_the_end_of_the_stream_show_in_the_reports(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1, 2])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.delta(removed=[1, 2], send=False)
        await plane.until(lambda: plane.agrees(agent) and plane.matched("w", 1, 2) == 0, agent)


async def test_blocks_of_a_dead_engine_are_never_credited_to_the_new_one(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", epoch=7)
    agent.delta([1, 2, 3])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.restart(epoch=3)  # epochs are names, not numbers that grow
        agent.report()
        await plane.until(lambda: plane.fleet.records["w"].epoch == 3)
        assert plane.matched("w", 1, 2, 3) == 0
        agent.delta([9])
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.matched("w", 9) == 1


async def test_a_delta_of_a_new_epoch_is_enough_to_drop_the_old_one(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", epoch=1)
    agent.delta([1, 2, 3])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.restart(epoch=2)
        agent.delta([4])
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.matched("w", 1, 2, 3) == 0


async def test_a_flushed_redis_is_made_good_by_what_agents_write_again(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1, 2, 3])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.redis.flushall()
        assert plane.matched("w", 1, 2, 3) == 3
        agent.register()
        agent.delta([4], [3])
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.matched("w", 1, 2, 3) == 2


async def test_a_killed_and_restarted_redis_is_followed_again_and_decisions_go_on_meanwhile(own_redis: RedisServer) -> None:
    agent = FakeAgent(own_redis.url, "w")
    agent.delta([1, 2, 3])
    agent.begin()
    async with plane_on(own_redis.url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        own_redis.kill()
        await plane.until(lambda: not plane.ingest.connected)
        assert plane.matched("w", 1, 2, 3) == 3
        assert plane.fleet.left == []
        agent.blocks.discard(3)  # the engine went on while no one could be told
        agent.sequence += 1
        own_redis.start()
        agent.stream_id = "0"
        agent.register()
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.ingest.connected
        assert plane.matched("w", 1, 2, 3) == 2


async def test_a_redis_whose_clock_went_back_is_read_from_its_new_beginning(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1, 2, 3])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.redis.flushall()
        agent.register()
        agent.sequence += 1
        agent.blocks.add(4)
        delta = keyspace.BlockDelta(agent.epoch, agent.sequence, 0.0, array("Q", [4]))
        agent.redis.xadd(keyspace.blocks_key("w"), {keyspace.DELTA_FIELD: keyspace.encode_delta(delta)}, id="5-1")
        agent.stream_id = "5-1"
        report = EngineReport(worker="w", epoch=1, sequence=9, state=0, scrape_age_s=0.0, delta_sequence=agent.sequence)
        numbers = itertools.count(1)

        def told() -> bool:
            if agent.asked():
                agent.snapshot()
            entry_id = f"5-{next(numbers)}"
            agent.redis.xadd(keyspace.REPORTS, {keyspace.REPORT_FIELD: keyspace.encode_report(report)}, id=entry_id)
            return plane.agrees(agent)

        await plane.until(told)


async def test_an_agent_that_is_not_exact_itself_degrades_its_worker(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.report(exact=False)
        await plane.until(lambda: plane.state("w") is IndexState.DEGRADED)
        assert plane.matched("w", 1) == 0
        agent.report()
        await plane.until(lambda: plane.agrees(agent))


async def test_a_snapshot_with_a_missing_chunk_is_asked_for_again(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta(range(1, 100))
    agent.register()
    agent.snapshot(chunk_blocks=10, lose_chunk=4)
    agent.report()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        assert agent.snapshots == 2


async def test_only_gpu_blocks_earn_credit_and_a_clear_empties_the_worker(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.begin()
    async with plane_on(redis_url) as plane:
        agent.delta([1, 2], tier=Tier.CPU)
        agent.delta([3])
        await plane.until(lambda: plane.agrees(agent), agent)
        assert plane.matched("w", 1, 2) == 0
        agent.delta([4], flags=DeltaFlag.CLEAR)
        await plane.until(lambda: plane.agrees(agent) and plane.matched("w", 4) == 1, agent)
        assert plane.matched("w", 3) == 0


async def test_a_worker_without_events_is_speculative_and_a_leaving_one_is_gone(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w", sends_kv_events=False)
    agent.register()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.state("w") is IndexState.SPECULATIVE, agent)
        plane.index.speculate(plane.fleet.slots["w"], array("Q", [1, 2]), 0.0)
        assert plane.matched("w", 1, 2, 3) == 2
        agent.redis.delete(keyspace.worker_key("w"))
        agent.report(state=EngineState.LEAVING)
        await plane.until(lambda: plane.fleet.left == ["w"])
        assert plane.matched("w", 1, 2, 3) == 0


async def test_unreadable_entries_are_counted_and_cost_no_more_than_a_snapshot(redis_url: str) -> None:
    agent = FakeAgent(redis_url, "w")
    agent.delta([1])
    agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: plane.agrees(agent), agent)
        agent.redis.xadd(keyspace.REPORTS, {"r": b"\xc1"})
        agent.redis.xadd(keyspace.REPORTS, {"other": b""})
        agent.redis.xadd(keyspace.blocks_key("w"), {"d": b"short"})
        agent.sequence += 1
        agent.delta([2])
        await plane.until(lambda: plane.agrees(agent) and plane.ingest.bad_entries >= 3, agent)


async def test_an_engines_later_word_settles_the_answers_before_it(redis_url: str) -> None:
    """By a delta or, where nothing changes any more, by a report; of another worker it says nothing."""
    agents = [FakeAgent(redis_url, worker) for worker in ("by-delta", "by-report", "silent")]
    for agent in agents:
        agent.delta([1, 2])
        agent.begin()
    async with plane_on(redis_url) as plane:
        await plane.until(lambda: all(plane.agrees(agent) for agent in agents), *agents)
        changes: list[int] = []
        plane.ingest.on_applied = lambda: changes.append(plane.index.generation)
        for agent in agents:
            plane.index.answered(plane.fleet.slots[agent.worker], 2, 2, 3, SystemClock.now())

        def claimed() -> set[str]:
            plane.matched("silent", 1, 2, 3)
            return {worker for worker, slot in plane.fleet.slots.items() if slot in plane.index.claims}

        assert claimed() == {"by-delta", "by-report", "silent"}
        agents[0].delta([77])
        await plane.until(lambda: "by-delta" not in claimed())
        assert changes
        await plane.until(lambda: claimed() == {"silent"}, agents[1])

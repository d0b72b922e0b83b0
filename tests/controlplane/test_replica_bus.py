"""The channel between control planes over a real Redis: heard within a moment, cut, stalled, silent, garbled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from contract.replicas import CHANNEL, PEER_S_MAX
from controlplane.replica_bus import ReplicaBus
from controlplane.replicas import Replicas
from runtime.clock import SystemClock
from tests.controlplane.parts import question
from tests.controlplane.served import LivePlant
from tests.fakes.tcp_proxy import TcpProxy
from tests.waiting import meanwhile, until


@dataclass(eq=False)
class Half:
    """One control plane and its end of the channel."""

    plant: LivePlant
    replicas: Replicas
    bus: ReplicaBus
    task: asyncio.Task[None]

    @property
    def foreign(self) -> int:
        return sum(load.foreign.active for load in self.plant.ledger.loads.values() if load.foreign is not None)


@pytest.fixture
async def path(redis_url: str) -> AsyncIterator[TcpProxy]:
    """What lies between the second control plane and Redis."""
    proxy = TcpProxy(Path(redis_url.removeprefix("unix://")))
    await proxy.start()
    yield proxy
    proxy.flow()
    await proxy.cut()


@pytest.fixture
async def halves(redis_url: str, path: TcpProxy) -> AsyncIterator[tuple[Half, Half]]:
    made = []
    for number, url in enumerate((redis_url, f"redis://127.0.0.1:{path.port}/0")):
        plant = LivePlant(workers=2)
        plant.director._next_id = (number + 1) << 40
        replicas = Replicas(
            f"cp-{number}",
            director=plant.director,
            snapshot=plant.snapshot,
            ledger=plant.ledger,
            index=plant.index,
            self_check=plant.self_check,
            owners=lambda name=f"dp-{number}": (name,),  # type: ignore[misc]
        )
        bus = ReplicaBus(url, replicas, SystemClock())
        made.append(Half(plant, replicas, bus, asyncio.create_task(bus.run())))
    await until(lambda: all(len(half.replicas) == 1 for half in made), "both are heard")
    yield made[0], made[1]
    for half in made:
        half.task.cancel()
    await asyncio.gather(*[half.task for half in made], return_exceptions=True)


async def test_what_one_places_is_heard_by_the_other(halves: tuple[Half, Half]) -> None:
    one, other = halves
    decision = one.plant.place(question(1, 2), owner="dp-0")
    await until(lambda: other.foreign == 1, "one request elsewhere")
    one.plant.end(decision)
    await until(lambda: other.foreign == 0, "none elsewhere")


@pytest.mark.parametrize("how", ["cut", "stall"])
async def test_without_redis_nothing_of_another_is_left_and_it_is_heard_again(
    how: str, halves: tuple[Half, Half], path: TcpProxy
) -> None:
    one, other = halves
    one.plant.place(question(1, 2), owner="dp-0")
    await until(lambda: other.foreign == 1, "one request elsewhere")
    if how == "cut":
        await path.cut()
    else:
        path.stall()
    await until(lambda: other.foreign == 0 and not len(other.replicas), "forgotten", seconds_max=PEER_S_MAX + 3)
    await until(lambda: not len(one.replicas), "forgotten by the first", seconds_max=PEER_S_MAX + 3)
    if how == "cut":
        await path.start()
    else:
        path.flow()
    await until(lambda: other.foreign == 1 and len(one.replicas) == 1, "heard again")


async def test_one_that_ends_says_so(halves: tuple[Half, Half]) -> None:
    one, other = halves
    one.plant.place(question(1, 2), owner="dp-0")
    await until(lambda: other.foreign == 1, "one request elsewhere")
    one.task.cancel()
    await asyncio.gather(one.task, return_exceptions=True)
    await one.bus.leave()
    await until(lambda: not len(other.replicas), "it has left", seconds_max=PEER_S_MAX / 2)
    assert other.foreign == 0


async def test_what_cannot_be_read_is_counted_and_harms_nobody(halves: tuple[Half, Half], redis_url: str) -> None:
    one, other = halves
    async with aioredis.Redis.from_url(redis_url) as client:
        for garbage in (b"", b"\x93", b"\xc0" * 40):
            await client.publish(CHANNEL, garbage)
    await until(lambda: one.bus.bad_entries == other.bus.bad_entries == 3, "three bad words")
    one.plant.place(question(1, 2), owner="dp-0")
    await until(lambda: other.foreign == 1, "one request elsewhere")


async def test_it_says_little_while_nothing_changes(halves: tuple[Half, Half]) -> None:
    one, _ = halves
    before, since = one.bus.said, time.monotonic()
    await meanwhile(1.0)
    assert one.bus.said - before <= 10 * (time.monotonic() - since) + 2  # whole ones, every 100 ms

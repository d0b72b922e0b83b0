"""One data-parallel rank of an engine hangs: what waits there is answered by the other, and operators see which it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from proto import fleet_pb2
from tests.e2e.stack import RunningStack, running_stack
from tests.e2e.test_hung import SETTINGS, order, shown
from tests.e2e.test_rolling import no_reservations, status_of
from tests.e2e.test_survival import RECOVERY_S_MAX
from tests.waiting import until, until_elsewhere

REQUESTS = 12


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    arguments = ("--speed", "4", "--ranks", "2", "--engine-faults", "--no-trainer", "--policy", "round_robin")
    with running_stack(tmp_path_factory.mktemp("home"), *arguments, workers=1, environment=SETTINGS) as running:
        yield running


async def ask(session: aiohttp.ClientSession, stack: RunningStack, number: int) -> tuple[int, str, str]:
    """Status, rank, attempts."""
    body = {
        "model": stack.facts()["model"],
        "prompt": f"question {number}",
        "max_tokens": 4,
        "stream": bool(number % 2),
    }
    async with session.post(stack.url + "/v1/completions", json=body) as reply:
        await reply.read()
        return reply.status, reply.headers.get("x-headway-rank", ""), reply.headers["x-headway-attempts"]


@pytest.mark.slow
async def test_requests_at_a_hung_rank_are_answered_by_another_one_of_the_same_engine(ranked: RunningStack) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=RECOVERY_S_MAX)) as session:
        assert (await ask(session, ranked, 0))[0] == 200
        await asyncio.to_thread(order, ranked, kind="hang", rank=1)
        try:
            ends = await asyncio.gather(*(ask(session, ranked, number) for number in range(REQUESTS)))
            assert {end[:2] for end in ends} == {(200, "0")}, ends
            assert any(end[2] == "2" for end in ends), "none was sent to the hung one"
            await until_elsewhere(
                lambda: "worker-1: rank 1: breaker" in shown(ranked), what="the breaker of rank 1 in the table"
            )
            status = status_of(ranked, "worker-1")
            assert status.breaker == fleet_pb2.CLOSED
            assert status.ranks[0].breaker == fleet_pb2.CLOSED
            assert status.ranks[1].breaker != fleet_pb2.CLOSED
        finally:
            await asyncio.to_thread(order, ranked, kind="clear")

        async def served() -> bool:
            return (await ask(session, ranked, 1))[1] == "1"

        await until(served, "rank 1 serves again", seconds_max=RECOVERY_S_MAX, poll_s=0.2)
    await until_elsewhere(lambda: no_reservations(ranked), seconds_max=15, what="no reservation left")

"""A thousand streams at once through one data plane, real emulators and control plane behind it: none fails or is mixed up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.bench.chaos import SETTINGS, Clients, Job, jobs, text_of
from tests.e2e.stack import RunningStack, running_stack
from tests.e2e.test_rolling import no_reservations
from tests.waiting import wait_until

STREAMS = 1000
TOKENS = 12


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_thousand_streams_at_once_are_complete_and_not_mixed_up(tmp_path: Path) -> None:
    settings = SETTINGS | {
        "HEADWAY_CONTROLPLANE_ACTIVE_MAX": "1000",
        "HEADWAY_DATAPLANE_FIRST_BYTE_TIMEOUT_S": "60",
        "HEADWAY_DATAPLANE_IDLE_TIMEOUT_S": "60",
        "HEADWAY_DATAPLANE_DECISION_TIMEOUT_MS": "20000",
        "HEADWAY_DATAPLANE_CONNECT_TIMEOUT_S": "20",  # a process that stood still finds this one over, too
    }
    with running_stack(tmp_path, "--speed", "4", workers=3, environment=settings) as stack:
        ends, problems, told = asyncio.run(_all_at_once(stack))
        assert ends == {"complete": STREAMS}, f"{ends} {problems[:3]}\n{told}"
        wait_until(lambda: no_reservations(stack), seconds_max=15, what="no reservation left")


async def _all_at_once(stack: RunningStack) -> tuple[Counter[str], list[str], str]:
    """Ends by kind, what was wrong, and what the stack told where a request waited long."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(stack.url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        prompts = [Job(job.path, job.body | {"stream": True, "max_tokens": TOKENS}) for job in jobs(model, random.Random(1))]
        known = await asyncio.gather(*(_expected(stack, session, job) for job in prompts))
        clients = Clients(stack, session, random.Random(1), leave_share=0.0)
        await asyncio.gather(*(clients.one(number, known[number % len(known)]) for number in range(STREAMS)))
    details = [end.detail for end in clients.ends.values() if end.kind != "complete"]
    return Counter(end.kind for end in clients.ends.values()), details, clients.told


async def _expected(stack: RunningStack, session: aiohttp.ClientSession, job: Job) -> Job:
    async with session.post(stack.url + job.path, json=job.body | {"stream": False}) as reply:
        return Job(job.path, job.body, text_of(await reply.json()))

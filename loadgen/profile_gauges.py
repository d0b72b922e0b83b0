"""Engines' /metrics ten times a second: which figures a request's engine showed just before the request was sent to it.

Engines are found in Redis, where their agents register them. A page has 50 KB, so it is searched, not parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from bisect import bisect_right
from typing import Any

import aiohttp
import redis.asyncio
from redis.exceptions import RedisError

from contract import keyspace
from loadgen.errors import LoadError
from loadgen.profile_rows import Gauges
from runtime.clock import Clock

INTERVAL_S = 0.1
TIMEOUT_S = 2.0
KEPT_MAX = 36_000
"""Pages' figures an engine: an hour of them; older ones go."""
_FAMILIES = {
    "running": (b"vllm:num_requests_running",),
    "waiting": (b"vllm:num_requests_waiting",),
    "kv_usage": (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    "preemptions": (b"vllm:num_preemptions_total", b"vllm:num_preemptions"),
}
"""New names first. Each series exists once per data-parallel rank: summed, usage is the maximum."""
_PATTERNS = {
    name: [re.compile(rb"^" + family + rb"(?:\{[^\n]*\})? ([^\s]+)", re.MULTILINE) for family in families]
    for name, families in _FAMILIES.items()
}


def figures(page: bytes) -> dict[str, float] | None:
    """None: not an engine's page."""
    found: dict[str, float] = {}
    for name, patterns in _PATTERNS.items():
        values = next((values for pattern in patterns if (values := pattern.findall(page))), [])
        try:
            numbers = [float(value) for value in values]
        except ValueError:
            return None
        if not numbers:
            if name in ("running", "waiting"):
                return None
            numbers = [float("nan")]
        found[name] = max(numbers) if name == "kv_usage" else sum(numbers)
    return found


class History:
    """Figures by worker, oldest first."""

    def __init__(self) -> None:
        self._known: dict[str, list[Gauges]] = {}

    def add(self, worker: str, gauges: Gauges) -> None:
        known = self._known.setdefault(worker, [])
        known.append(gauges)
        if len(known) > KEPT_MAX:
            del known[: KEPT_MAX // 2]

    def before(self, worker: str, at_s: float) -> Gauges | None:
        """The newest that was taken at or before `at_s`."""
        known = self._known.get(worker, [])
        place = bisect_right(known, at_s, key=lambda gauges: gauges.at_s)
        return known[place - 1] if place else None


async def engines(client: redis.asyncio.Redis) -> dict[str, str]:
    """Base URLs by worker, as registered. LoadError: Redis does not answer, or nobody is registered."""
    try:
        keys = [key async for key in client.scan_iter(match=keyspace.WORKER_PATTERN)]
        values: list[Any] = await client.mget(keys) if keys else []
        records = [keyspace.decode_worker(value) for value in values if value]
    except (RedisError, OSError, keyspace.CodecError) as error:
        raise LoadError(f"the fleet's Redis cannot be read: {error}") from None
    if not records:
        raise LoadError("no worker is registered in the fleet's Redis")
    return {record.worker: record.url for record in records}


class Scraper:
    """Fills a history until it is cancelled. A page that does not come is left out: its engine's figures grow older."""

    def __init__(self, urls: dict[str, str], history: History, clock: Clock) -> None:
        self._urls = urls
        self._history = history
        self._clock = clock

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for worker, url in self._urls.items():
                group.create_task(self._follow(session, worker, f"{url}/metrics"))

    async def _follow(self, session: aiohttp.ClientSession, worker: str, url: str) -> None:
        while True:
            began = self._clock.now()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.get(url) as reply:
                    page = await reply.read()
                    if reply.status == 200 and (found := figures(page)) is not None:
                        self._history.add(worker, Gauges(self._clock.unix(), **found))
            await asyncio.sleep(max(0.0, INTERVAL_S - (self._clock.now() - began)))

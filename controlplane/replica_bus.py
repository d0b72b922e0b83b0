"""The channel on which control planes of one fleet hear each other: Redis, publish and subscribe. See contract.replicas.

Nothing here is on a request's path. While Redis is away nobody is heard, and each decides by itself.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from contract.keyspace import CodecError
from contract.replicas import ALONE_S, CHANNEL, SAY_S, Message, decode, encode
from controlplane.replicas import Replicas
from runtime.clock import Clock
from runtime.tasks import happened, stop_if_cancelled

log = logging.getLogger(__name__)

RECONNECT_S_MIN = 0.05
RECONNECT_S_MAX = 1.0
SILENT_S_MAX = 3.0
"""Everybody hears at least its own word, twice a second: a channel that brings nothing for so long is dead."""
PUBLISH_S_MAX = 1.0


class ReplicaBus:
    """Tasks: `run`."""

    def __init__(self, redis_url: str, replicas: Replicas, clock: Clock) -> None:
        self._url = redis_url
        self._replicas = replicas
        self._clock = clock
        self._own = b""
        self._news = asyncio.Event()  # somebody is heard
        self.said = 0
        self.heard = 0
        """Words of others."""
        self.bad_entries = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forget())
            group.create_task(self._keep(self._listen))
            group.create_task(self._keep(self._tell))

    async def leave(self) -> None:
        """The last word, so that nobody waits for the silence."""
        message = self._replicas.say(self._clock.now(), leaving=True)
        client = self._client()
        try:
            async with asyncio.timeout(PUBLISH_S_MAX):
                await self._publish(client, message)
        except (RedisError, OSError, TimeoutError):
            log.debug("nobody was told of the end")
        finally:
            await client.aclose()

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(
            self._url,
            protocol=2,
            socket_timeout=PUBLISH_S_MAX,
            socket_connect_timeout=PUBLISH_S_MAX,
            retry=Retry(NoBackoff(), 0),
        )

    async def _forget(self) -> None:
        """Whoever is silent, Redis or not."""
        while True:
            self._replicas.tick(self._clock.now())
            await self._pause()

    async def _pause(self) -> None:
        """As short as others may notice; as long as a word to nobody waits where none is heard."""
        if len(self._replicas):
            await asyncio.sleep(SAY_S)
        else:
            self._news.clear()
            await happened(self._news, ALONE_S)

    async def _keep(self, body: Any) -> None:
        pause_s = RECONNECT_S_MIN
        while True:
            stop_if_cancelled()
            client = self._client()
            began = self._clock.now()
            try:
                await body(client)
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("the channel between control planes is down: %s", error)
            finally:
                await client.aclose()
            if self._clock.now() - began > RECONNECT_S_MAX:
                pause_s = RECONNECT_S_MIN
            await asyncio.sleep(pause_s)
            pause_s = min(RECONNECT_S_MAX, 2 * pause_s)

    async def _tell(self, client: redis.Redis) -> None:
        while True:
            stop_if_cancelled()
            message = self._replicas.say(self._clock.now())
            if message is not None:
                try:
                    await self._publish(client, message)
                except BaseException:
                    self._replicas.unsaid()
                    raise
            await self._pause()

    async def _publish(self, client: redis.Redis, message: Message | None) -> None:
        if message is not None:
            self._own = encode(message)
            await client.publish(CHANNEL, self._own)
            self.said += 1

    async def _listen(self, client: redis.Redis) -> None:
        """TimeoutError: nothing came, not even one's own."""
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(CHANNEL)
            heard_at = self._clock.now()
            while True:
                stop_if_cancelled()
                entry = await pubsub.get_message(timeout=PUBLISH_S_MAX)
                now = self._clock.now()
                if entry is not None:
                    heard_at = now
                    self._take(entry["data"], now)
                elif now - heard_at > SILENT_S_MAX:
                    raise TimeoutError("the channel is silent")
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _take(self, data: bytes, now: float) -> None:
        if data == self._own:
            return
        try:
            message = decode(data)
        except CodecError as error:
            self.bad_entries += 1
            if self.bad_entries & (self.bad_entries - 1) == 0:
                log.warning("unreadable word on the bus", extra={"f": {"error": error, "entries": self.bad_entries}})
            return
        self.heard += message.replica != self._replicas.name
        self._replicas.hear(message, now)
        if len(self._replicas):
            self._news.set()

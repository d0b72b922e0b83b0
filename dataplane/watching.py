"""Connections to all control planes of the list, each with the fleet views that come on it: whoever is not asked now is known
to be there, and a stream to it opens without a handshake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
import grpc.aio

from dataplane.planes import Plane, Planes
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc as rpc
from runtime.clock import Clock

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
RECONNECT_S_MIN = 0.05
RECONNECT_S_MAX = 1.0
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

Credentials = Callable[[str], grpc.ChannelCredentials | None]
"""Of a target; None: plain."""

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Watching:
    """on_view: called with each control plane that sent a view, after `planes` has been told."""

    def __init__(
        self, planes: Planes, process: str, credentials: Credentials, *, on_view: Callable[[Plane], None], clock: Clock
    ) -> None:
        self._planes = planes
        self._process = process
        self._credentials = credentials
        self._on_view = on_view
        self._clock = clock
        self._stubs: dict[Plane, rpc.RoutingAsyncStub] = {}
        self.heard = asyncio.Event()
        """Somebody sent a view."""

    def stub(self, plane: Plane) -> rpc.RoutingAsyncStub:
        """While `run` runs."""
        return self._stubs[plane]

    async def run(self) -> None:
        """Until cancelled."""
        async with AsyncExitStack() as channels, asyncio.TaskGroup() as group:
            for plane in self._planes:
                channel = await channels.enter_async_context(self._channel(plane.target))
                self._stubs[plane] = rpc.RoutingStub(channel)
                group.create_task(self._keep(plane, channel))

    def _channel(self, target: str) -> grpc.aio.Channel:
        credentials = self._credentials(target)
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)

    async def _keep(self, plane: Plane, channel: grpc.aio.Channel) -> None:
        pause_s, said = RECONNECT_S_MIN, False
        while True:
            began = self._clock.now()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await channel.channel_ready()
                async for view in self._stubs[plane].WatchFleet(pb.WatchFleetRequest(process=self._process)):
                    self._planes.heard(plane, view, self._clock.now())
                    self.heard.set()
                    self._on_view(plane)
                why = "ended by the control plane"
            except grpc.aio.AioRpcError as error:
                why = f"{error.code().name}: {error.details()}"
            except TimeoutError:
                why = f"no answer from {plane.target}"
            self._planes.unwatched(plane)
            if self._clock.now() - began > CONNECT_TIMEOUT_S + 1:
                pause_s, said = RECONNECT_S_MIN, False
            if not said:
                log.warning("control plane lost", extra={"f": {"for": "fleet view", "target": plane.target, "why": why}})
                said = True
            await asyncio.sleep(pause_s)
            pause_s = min(RECONNECT_S_MAX, 2 * pause_s)

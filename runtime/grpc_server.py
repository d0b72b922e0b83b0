"""A gRPC server: health and reflection on, addresses taken or refused in plain words."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runtime.addresses import AddressError, probe, split_address
from runtime.tls import is_local

OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second process takes half of the connections of the first
    # clients ping idle streams to notice a dead host; that is no abuse
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Server:
    """services: full names, as health and reflection tell them; credentials: TLS of the TCP addresses; Unix sockets stay
    plain, their file says who may connect."""

    def __init__(
        self,
        add_services: Callable[[grpc.aio.Server], None],
        services: Sequence[str],
        credentials: grpc.ServerCredentials | None = None,
        *,
        message_bytes_max: int,
    ) -> None:
        lengths = (
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_send_message_length", message_bytes_max),
        )
        self._credentials = credentials
        self._services = tuple(services)
        self._server = grpc.aio.server(options=(*OPTIONS, *lengths))
        self._health = health.aio.HealthServicer()
        add_services(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.addresses: list[str] = []

    async def start(self, addresses: Sequence[str]) -> None:
        """AddressError: one of them cannot be had."""
        for address in addresses:
            self.addresses.append(self._listen(address))
        await self._server.start()
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, *, grace_s: float) -> None:
        """Says that it ends, lets calls in flight end within the grace, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def _listen(self, address: str) -> str:
        """The address as it can be dialled: a port 0 has become a number."""
        where = split_address(address)
        probe(address)
        try:
            if self._credentials is None or is_local(address):
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise AddressError(errno.EADDRINUSE, f"cannot listen on {address}: {error}") from error
        return address if isinstance(where, str) else f"{where[0]}:{port}"

"""Settings that several processes have: the bus, and a gRPC server."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.addresses import split_address
from runtime.redis_url import check_redis_url, with_password
from runtime.settings import SettingsError, setting
from runtime.tls import check_pair


@dataclass(frozen=True)
class BusSettings:
    """Where Redis is. To be inherited by a process's settings, whose `check` calls `check_bus`."""

    redis_url: str = setting("redis://127.0.0.1:6379/0", "the bus; also unix:///path/redis.sock", env="REDIS_URL")
    redis_password: str = setting("", "of the bus, where the URL has none", env="REDIS_PASSWORD", secret=True)

    def check_bus(self) -> None:
        """ValueError."""
        check_redis_url("--redis-url", self.redis_url)

    @property
    def bus_url(self) -> str:
        """The Redis URL with its password."""
        return with_password(self.redis_url, self.redis_password)


@dataclass(frozen=True)
class GrpcSettings:
    """Where a gRPC server listens, and for whom. Inherited likewise; the heir names its default address."""

    listen: tuple[str, ...] = setting((), "gRPC addresses: HOST:PORT or unix:/path; repeated or with commas")
    tls_cert: str = setting("", "certificate chain of the gRPC TCP addresses, PEM; a renewed one is found by itself")
    tls_key: str = setting("", "its private key")
    tls_client_ca: str = setting("", "authority whose certificates gRPC clients must show; empty: none is asked for")

    def check_grpc(self) -> None:
        """ValueError."""
        if not self.listen:
            raise SettingsError("--listen: no address given")
        for address in self.listen:
            split_address(address)
        check_pair(self.tls_cert, self.tls_key, "--tls-cert, --tls-key")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("--tls-client-ca: needs --tls-cert and --tls-key")

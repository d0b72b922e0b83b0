"""Is a process of the stack up? One probe a kind; each answers within PROBE_TIMEOUT_S.

    python -m headway.health http:http://127.0.0.1:8000/ready        exit code 0: healthy, 1: not

The libraries are imported where they are used: as a container's health check this runs every few seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.error
import urllib.request

from runtime.redis_url import with_password

PROBE_TIMEOUT_S = 2.0
PROBE_PAUSE_S = 0.05


async def is_healthy(probe: str, control: str = "") -> bool:
    """probe: as in `plan.Process.health`; control: gRPC target of the control plane, for workers."""
    kind, _, target = probe.partition(":")
    if kind == "redis":
        return await _redis(target)
    if kind == "grpc":
        return await _grpc(target)
    if kind == "worker":
        return await _worker(control, target)
    if kind == "http":
        return await asyncio.to_thread(_http, target)
    raise ValueError(f"no such probe: {probe!r}")


async def wait_healthy(probe: str, control: str, timeout_s: float) -> bool:
    """False: not within the time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while loop.time() < deadline:
        if await is_healthy(probe, control):
            return True
        await asyncio.sleep(PROBE_PAUSE_S)
    return False


async def _redis(url: str) -> bool:
    import redis.asyncio

    try:
        async with redis.asyncio.Redis.from_url(
            with_password(url, os.environ.get("REDIS_PASSWORD", "")), socket_timeout=PROBE_TIMEOUT_S
        ) as client:
            return bool(await client.ping())
    except (OSError, redis.RedisError):
        return False


async def _grpc(target: str) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from headway.control_client import open_channel

    try:
        async with open_channel(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    except grpc.RpcError:
        return False


async def _worker(control: str, worker: str) -> bool:
    import grpc

    from headway.control_client import open_channel
    from proto import fleet_pb2, fleet_pb2_grpc

    try:
        async with open_channel(control) as channel:
            stub = fleet_pb2_grpc.FleetStub(channel)
            reply = await stub.ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=PROBE_TIMEOUT_S)
    except grpc.RpcError:
        return False
    return any(status.worker == worker and status.alive for status in reply.workers)


def _http(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def main() -> None:
    try:
        healthy = asyncio.run(is_healthy(*sys.argv[1:3]))
    except (TypeError, ValueError) as error:
        print(f"headway.health: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    raise SystemExit(0 if healthy else 1)


if __name__ == "__main__":
    main()

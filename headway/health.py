"""Is a process of the stack up? One probe a kind; each answers within PROBE_TIMEOUT_S."""

from __future__ import annotations

import asyncio

import aiohttp
import grpc
import redis.asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto import fleet_pb2, fleet_pb2_grpc

PROBE_TIMEOUT_S = 2.0
PROBE_PAUSE_S = 0.05


async def is_healthy(probe: str, control: str) -> bool:
    """probe: as in `plan.Process.health`; control: gRPC target of the control plane, for workers."""
    kind, _, target = probe.partition(":")
    try:
        if kind == "redis":
            return await _redis(target)
        if kind == "grpc":
            return await _grpc(target)
        if kind == "worker":
            return await _worker(control, target)
        if kind == "http":
            return await _http(target)
    except (OSError, TimeoutError, redis.RedisError, grpc.RpcError, aiohttp.ClientError):
        return False
    return True


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
    async with redis.asyncio.Redis.from_url(url, socket_timeout=PROBE_TIMEOUT_S) as client:
        return bool(await client.ping())


async def _grpc(target: str) -> bool:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def _worker(control: str, worker: str) -> bool:
    async with grpc.aio.insecure_channel(control) as channel:
        reply = await fleet_pb2_grpc.FleetStub(channel).ListWorkers(fleet_pb2.ListWorkersRequest(), timeout=PROBE_TIMEOUT_S)
        return any(status.worker == worker and status.alive for status in reply.workers)


async def _http(url: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
        return reply.status == 200

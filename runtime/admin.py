"""A process's small HTTP side: /metrics for Prometheus, /health (alive) and /ready (does its work)."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from runtime.addresses import probe


async def start(host: str, port: int, registry: CollectorRegistry, not_ready: Callable[[], str]) -> web.AppRunner:
    """Serves on the running loop until the runner is cleaned up. not_ready: why not, or "". AddressError: it cannot be had."""
    probe(f"{host}:{port}")

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        why = not_ready()
        return web.Response(status=503, text=f"{why}\n") if why else web.Response(text="ready\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/health", health), web.get("/ready", ready)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner

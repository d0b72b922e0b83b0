"""One data-plane process put together: the parts built from settings, started, drained."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor

from contract import tokens
from dataplane.admission import Concurrency, RetryBudget
from dataplane.control import ControlClient
from dataplane.fallback import Fleet, static_view
from dataplane.gateway import Gateway
from dataplane.metrics import Metrics
from dataplane.prompts import Prompts
from dataplane.server import Server
from dataplane.settings import Settings, pairs
from dataplane.upstream import UpstreamPool
from runtime.clock import Clock

log = logging.getLogger(__name__)

TOKENIZE_THREADS = 2
OUTCOME_FLUSH_S = 1.0


class App:
    """A data plane in this event loop."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._executor = ThreadPoolExecutor(TOKENIZE_THREADS, "tokenize")
        metrics = Metrics()
        fleet = Fleet()
        self.prompts = Prompts(tokens.load, dict(pairs(settings.tokenizer, "--tokenizer")))
        self.control = ControlClient(
            settings.control,
            f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            fleet=fleet,
            held=lambda: self.gateway.held(),
            on_view=self._on_view,
            metrics=metrics,
            clock=clock,
            decision_timeout_s=settings.decision_timeout_ms / 1000,
            queue_timeout_s=settings.queue_timeout_ms / 1000,
            outcomes_max=settings.outcomes_max,
        )
        self.gateway = Gateway(
            settings=settings,
            clock=clock,
            fleet=fleet,
            control=self.control,
            pool=UpstreamPool(clock=clock, idle_s=settings.upstream_idle_s, connect_timeout_s=settings.connect_timeout_s),
            prompts=self.prompts,
            executor=self._executor,
            budget=RetryBudget(ratio=settings.retry_ratio, per_s=settings.retry_per_s, now=clock.now()),
            concurrency=Concurrency(settings.requests_max),
            metrics=metrics,
            exchanges=set(),
            extra_headers=_cors(settings.cors_origin),
        )
        if settings.endpoint:
            fleet.apply(static_view(pairs(settings.endpoint, "--endpoint")))
            self._on_view()
        self.server = Server(self.gateway, admin=False if settings.admin_port else None)
        self.admin = Server(self.gateway, admin=True) if settings.admin_port else None
        self._declare_gauges(metrics)
        self._control_task: asyncio.Task[None] | None = None

    async def start(self, *, reuse_port: bool = False, process_number: int = 0) -> int:
        """Listens; the port. OSError: it cannot be had."""
        port = await self.server.listen(self.settings.host, self.settings.port, reuse_port=reuse_port)
        if self.admin is not None:
            await self.admin.listen(self.settings.host, self.settings.admin_port + process_number)
        self._control_task = asyncio.create_task(self.control.run(), name="control")
        return port

    async def stop(self) -> None:
        """Requests end by themselves up to the bound; outcomes leave; everything is closed."""
        cut = await self.server.drain(self.settings.drain_timeout_s)
        if cut:
            log.warning("requests were cut at the end", extra={"f": {"requests": cut}})
        await self.control.flush(OUTCOME_FLUSH_S)
        if self.admin is not None:
            await self.admin.drain(0)
        if self._control_task is not None:
            self._control_task.cancel()
            await asyncio.gather(self._control_task, return_exceptions=True)
        self.gateway.pool.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _on_view(self) -> None:
        view = self.gateway.fleet.view
        if view is not None:
            self.prompts.see(view.models, self._clock.now())

    def _declare_gauges(self, metrics: Metrics) -> None:
        gateway = self.gateway
        metrics.gauge("headway_requests_in_flight", "routed requests", lambda: gateway.concurrency.in_flight)
        metrics.gauge("headway_connections", "client connections", lambda: len(self.server.connections))
        metrics.gauge("headway_upstream_idle", "idle connections to engines", lambda: gateway.pool.idle)
        metrics.gauge("headway_control_connected", "1: decisions come from the control plane", lambda: self.control.connected)
        metrics.gauge("headway_outcomes_pending", "outcomes not yet sent", lambda: self.control.outcomes_pending)
        metrics.gauge("headway_endpoints_available", "endpoints of the last view", lambda: gateway.fleet.endpoints_available)
        metrics.gauge("headway_retry_tokens", "retries left in the budget", lambda: gateway.budget.tokens)


def _cors(origin: str) -> tuple[bytes, ...]:
    return (b"access-control-allow-origin: " + origin.encode(),) if origin else ()

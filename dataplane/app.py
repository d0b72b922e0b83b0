"""One data-plane process put together: the parts built from settings, started, drained."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

from contract import tokens
from dataplane.access import Access
from dataplane.access_log import AccessLog
from dataplane.admission import Concurrency, RetryBudget
from dataplane.control import ControlClient
from dataplane.credentials import UpstreamKeys
from dataplane.engines import Engines
from dataplane.fallback import Fleet, static_view
from dataplane.gateway import Gateway
from dataplane.handover import Offer, take
from dataplane.hedge import Hedges
from dataplane.logged import LoggedServer
from dataplane.metrics import LabelledGauge, Metrics
from dataplane.prompt_process import PromptProcess
from dataplane.prompts import Prompts
from dataplane.server import Server
from dataplane.settings import Settings, pairs
from dataplane.shared_limits import SharedTable
from dataplane.token_times import TokenTimes
from dataplane.trace import Ids
from dataplane.upstream import UpstreamPool
from runtime import tls
from runtime.clock import Clock
from runtime.files import Changes
from runtime.sockets import Sockets
from runtime.tasks import happened

log = logging.getLogger(__name__)

TOKENIZE_THREADS = 2
OUTCOME_FLUSH_S = 1.0
FLEET_WAIT_S_MAX = 5.0
"""How long one of several processes on a port waits for its first fleet view before it takes requests."""
FILES_CHECK_S = 1.0
"""How often the keys file is looked at, where there is one."""


class App:
    """A data plane in this event loop."""

    def __init__(self, settings: Settings, clock: Clock, limits: SharedTable | None = None) -> None:
        """limits: where several processes keep together what keys have used."""
        self.settings = settings
        # Before the files are read: no change falls between the two.
        self._certificate_changes = Changes(settings.tls_cert, settings.tls_key)
        self._upstream_keys_changes = Changes(settings.upstream_keys_file)
        self._clock = clock
        self._fleet_known = asyncio.Event()
        self._executor = ThreadPoolExecutor(TOKENIZE_THREADS, "tokenize")
        metrics = Metrics()
        engines = Engines()
        fleet = Fleet(engines)
        token_times = TokenTimes(clock.now, engines)
        sockets = Sockets(passes=settings.compiled)
        self.prompts = Prompts(tokens.load, dict(pairs(settings.tokenizer, "--tokenizer")))
        self.control = ControlClient(
            settings.control,
            f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            fleet=fleet,
            tokens=token_times,
            held=lambda: self.gateway.held(),
            on_view=self._on_view,
            metrics=metrics,
            clock=clock,
            decision_timeout_s=settings.decision_timeout_ms / 1000,
            queue_timeout_s=settings.queue_timeout_ms / 1000,
            outcomes_max=settings.outcomes_max,
            credentials=partial(_control_credentials, settings),
        )
        self.gateway = Gateway(
            settings=settings,
            clock=clock,
            fleet=fleet,
            control=self.control,
            pool=UpstreamPool(
                clock=clock,
                idle_s=settings.upstream_idle_s,
                connect_timeout_s=settings.connect_timeout_s,
                engines=engines,
                tokens=token_times,
                sockets=sockets,
                ca=settings.upstream_ca,
            ),
            prompts=self.prompts,
            executor=self._executor,
            budget=RetryBudget(ratio=settings.retry_ratio, per_s=settings.retry_per_s, now=clock.now()),
            concurrency=Concurrency(settings.requests_max),
            metrics=metrics,
            ids=Ids(),
            exchanges=set(),
            sockets=sockets,
            extra_headers=_cors(settings.cors_origin),
            last_lines=b"".join([b"\r\n" + line for line in _cors(settings.cors_origin)]) + b"\r\n\r\n",
            access=_access(settings, clock.now(), limits),
            credentials=_upstream_keys(settings),
            access_log=AccessLog(settings.access_log, clock.unix) if settings.access_log else None,
        )
        if settings.prompt_process:
            self.gateway.prompt_process = PromptProcess(metrics, log_level=settings.log_level, log_format=settings.log_format)
        if settings.hedge:
            self.gateway.hedges = Hedges(
                settings,
                clock=clock,
                control=self.control,
                pool=self.gateway.pool,
                fleet=fleet,
                hedged=metrics.hedges,
                reconnects=metrics.reconnects,
                exchanges=self.gateway.exchanges,
            )
        if settings.endpoint:
            fleet.apply(static_view(pairs(settings.endpoint, "--endpoint")))
            self._on_view()
        server_class = LoggedServer if settings.access_log else Server
        self.server = server_class(self.gateway, admin=False if settings.admin_port else None)
        self.admin = server_class(self.gateway, admin=True) if settings.admin_port else None
        self._tls = tls.server_context(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        self._declare_gauges(metrics)
        self._files_timer: asyncio.TimerHandle | None = None
        self._control_task: asyncio.Task[None] | None = None
        self._offer: Offer | None = None

    async def start(self, *, reuse_port: bool = False, process_number: int = 0) -> int:
        """Listens; the port. OSError: it cannot be had."""
        settings = self.settings
        if self.gateway.access_log is not None:
            self.gateway.access_log.start()
        self._control_task = asyncio.create_task(self.control.run(), name="control")
        if settings.share_port or settings.processes > 1:
            await self._know_the_fleet()  # whoever listens beside others gets its share of the callers at once
        taken = []
        if settings.share_port:
            taken = await asyncio.to_thread(take, settings.host, settings.port, process_number, settings.processes)
        port = await self.server.listen(settings.host, settings.port, reuse_port=reuse_port, tls=self._tls, taken=taken)
        if reuse_port:
            self._offer = Offer(settings.host, port, process_number, self.server.listening)
            self._offer.open()
        if self.admin is not None:
            await self.admin.listen(settings.admin_host or settings.host, settings.admin_port + process_number)
        if self.gateway.access is not None or self.gateway.credentials is not None or self._tls is not None:
            self._check_files()
        return port

    def reload(self) -> None:
        """Keys and certificates once more from their files; what cannot be used leaves what there was."""
        gateway = self.gateway
        if gateway.access is not None:
            gateway.access.reload(self._clock.now())
        if gateway.credentials is not None:
            gateway.credentials.reload()
        self._renew_certificate()

    def _renew_certificate(self) -> None:
        settings = self.settings
        if self._tls is None:
            return
        try:
            tls.renew(self._tls, settings.tls_cert, settings.tls_key)
            log.info("certificate read", extra={"f": {"file": settings.tls_cert}})
        except tls.TlsError as error:
            log.error("the certificate stays as it was", extra={"f": {"why": error}})

    async def stop(self) -> None:
        """Requests end by themselves up to the bound; outcomes leave; everything is closed."""
        if self._files_timer is not None:
            self._files_timer.cancel()
        if self._offer is not None:
            self._offer.close()
        cut = await self.server.drain(self.settings.drain_timeout_s)
        if cut:
            log.warning("requests were cut at the end", extra={"f": {"requests": cut}})
        await self.control.flush(OUTCOME_FLUSH_S)
        if self.admin is not None:
            await self.admin.drain(0)
        if self._control_task is not None:
            self._control_task.cancel()
            await asyncio.gather(self._control_task, return_exceptions=True)
        if self.gateway.prompt_process is not None:
            await self.gateway.prompt_process.stop()
        if self.gateway.access_log is not None:
            self.gateway.access_log.close()
        self.gateway.pool.close()
        self.gateway.sockets.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _check_files(self) -> None:
        """A few stats; what changed is read."""
        gateway = self.gateway
        if gateway.access is not None:
            gateway.access.reload_if_changed(self._clock.now())
        if gateway.credentials is not None and self._upstream_keys_changes():
            gateway.credentials.reload()
        if self._certificate_changes():
            self._renew_certificate()
        self._files_timer = asyncio.get_running_loop().call_later(FILES_CHECK_S, self._check_files)

    async def _know_the_fleet(self) -> None:
        """Returns with the first view that has somebody to send requests to, or without one when the time is over."""
        if not await happened(self._fleet_known, FLEET_WAIT_S_MAX):
            log.warning("listening without knowing the fleet", extra={"f": {"waited_s": FLEET_WAIT_S_MAX}})

    def _on_view(self) -> None:
        view = self.gateway.fleet.view
        if self.gateway.fleet.endpoints_available:
            self._fleet_known.set()
        if view is not None:
            self.prompts.see(view.models, self._clock.now(), wanted=not view.without_chains)
            if self.gateway.prompt_process is not None and self.prompts.wanted:
                self.gateway.prompt_process.see(self.prompts.seen(view.models), self.gateway.fleet.only_model)

    def _declare_gauges(self, metrics: Metrics) -> None:
        gateway = self.gateway
        metrics.gauge("headway_proxy_requests_in_flight", "routed requests", lambda: gateway.concurrency.in_flight)
        process = gateway.prompt_process
        if process is not None:
            metrics.gauge(
                "headway_proxy_prompt_process_ready", "1: long prompts are prepared by their own process", lambda: process.ready
            )
            metrics.gauge("headway_proxy_prompt_process_pending", "prompts there", lambda: process.pending)
        metrics.gauge("headway_proxy_compiled", "1: streams are passed on by compiled code", lambda: gateway.sockets.passes)
        metrics.gauge("headway_proxy_connections", "client connections", lambda: len(self.server.connections))
        metrics.gauge("headway_proxy_upstream_idle", "idle connections to engines", lambda: gateway.pool.idle)
        metrics.gauge(
            "headway_proxy_control_connected", "1: decisions come from the control plane", lambda: self.control.connected
        )
        metrics.gauges.append(
            LabelledGauge(
                "headway_proxy_control_target",
                "1: decisions come from this control plane",
                "target",
                lambda: {plane.target: float(plane.target == self.control.target) for plane in self.control.planes},
            )
        )
        metrics.gauge("headway_proxy_control_changes", "times that another one was taken", lambda: self.control.planes.changes)
        metrics.gauge("headway_proxy_outcomes_pending", "outcomes not yet sent", lambda: self.control.outcomes_pending)
        metrics.gauge(
            "headway_proxy_endpoints_available", "endpoints of the last view", lambda: gateway.fleet.endpoints_available
        )
        if gateway.access_log is not None:
            access_log = gateway.access_log
            metrics.gauge(
                "headway_proxy_access_log_dropped", "lines that could not be written in time", lambda: access_log.dropped
            )
        metrics.gauge("headway_proxy_retry_tokens", "retries left in the budget", lambda: gateway.budget.tokens)


def _control_credentials(settings: Settings, target: str) -> grpc.ChannelCredentials | None:
    """None: plain, without --control-ca and on Unix sockets."""
    if not settings.control_ca or tls.is_local(target):
        return None
    return tls.grpc_channel_credentials(settings.control_ca, settings.control_cert, settings.control_key)


def _access(settings: Settings, now: float, limits: SharedTable | None) -> Access | None:
    return Access(settings.keys_file, share=settings.processes, now=now, table=limits) if settings.keys_file else None


def _upstream_keys(settings: Settings) -> UpstreamKeys | None:
    if not settings.upstream_keys_file and not settings.upstream_key:
        return None
    return UpstreamKeys(settings.upstream_keys_file, settings.upstream_key)


def _cors(origin: str) -> tuple[bytes, ...]:
    return (b"access-control-allow-origin: " + origin.encode(), b"access-control-expose-headers: *") if origin else ()

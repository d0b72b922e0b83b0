"""Listening, what is answered here without a worker, deadlines, and the orderly end."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

import msgspec

from dataplane import errors
from dataplane.access import Access
from dataplane.connection import ClientConnection
from dataplane.errors import ApiError
from dataplane.exchange import Exchange
from dataplane.gateway import Gateway
from dataplane.heads import KnownHeads
from dataplane.http1 import Request, reply
from dataplane.keys import Key
from dataplane.limits import Permit
from dataplane.listening import Listener
from dataplane.openai import ADMIN_KINDS, OPEN_KINDS, Kind, classify
from dataplane.usual import UsualExchange
from runtime.tasks import LATE_S

log = logging.getLogger(__name__)

SWEEP_S_MAX = 0.5
SWEEP_S_MIN = 0.02
STILL_S_MAX = 5.0
"""Time in which the process stood still, as far as deadlines give it back."""
DRAIN_POLL_S = 0.02

_json = msgspec.json.Encoder()

_PREFLIGHT_HEADERS = (
    b"access-control-allow-methods: GET, POST, HEAD, OPTIONS",
    b"access-control-allow-headers: authorization, *",  # the star alone does not allow keys
    b"access-control-max-age: 86400",
)


class Server:
    """The HTTP side of one process. admin: whether health, readiness and metrics are answered, and nothing else."""

    exchange_class: type[Exchange] = Exchange
    usual_class: type[UsualExchange] = UsualExchange

    def __init__(self, gateway: Gateway, *, admin: bool | None = None) -> None:
        self.gateway = gateway
        self.settings = gateway.settings
        self.clock = gateway.clock
        self.metrics = gateway.metrics
        self.extra_headers = gateway.extra_headers
        self.connections: set[ClientConnection] = set()
        self.heads = KnownHeads(gateway.settings.body_bytes_max)
        self._admin = admin
        self._access = None if admin else gateway.access
        self._concurrency = gateway.concurrency
        # Usual requests go the short way (`usual`), where nothing has to be looked at that it does not know of.
        self.short_ways = not admin and gateway.access is None and gateway.credentials is None and gateway.hedges is None
        self._listener = Listener(lambda: ClientConnection(self), gateway.sockets)
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_due = float("inf")
        self._stood_still = False

    async def listen(
        self,
        host: str,
        port: int,
        *,
        reuse_port: bool = False,
        tls: ssl.SSLContext | None = None,
        taken: Sequence[socket.socket] = (),
    ) -> int:
        """The port that was bound. OSError: the address cannot be had. taken: sockets that listen there already."""
        bound = await self._listener.open(
            host, port, reuse_port=reuse_port, tls=tls, handshake_timeout_s=self.settings.head_timeout_s, taken=taken
        )
        self._sweep()
        return bound

    def listening(self) -> list[int]:
        """File descriptors of the sockets that listen."""
        return self._listener.filenos()

    async def drain(self, timeout_s: float) -> int:
        """Stop accepting, let requests end, up to a bound. Returns how many had to be cut.

        Idle connections stay for a moment: a request may be on its way, and is answered with `Connection: close`.
        """
        self.gateway.draining = True
        self._listener.close()
        began = now = self.clock.now()
        idle_s = min(timeout_s, self.settings.drain_idle_s)
        while now < began + timeout_s and (self.connections or self._listener.arriving):
            for connection in list(self.connections):
                if max(began, connection.idle_since) + idle_s <= now:
                    connection.close_if_idle()
            await asyncio.sleep(DRAIN_POLL_S)  # an event would cost every request
            now = self.clock.now()
        cut = self._busy()
        for connection in list(self.connections):
            if connection.exchange is not None:
                connection.exchange.shut_down()
            if connection.stalled_since:
                connection.cut()
            else:
                connection.close_if_idle()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return cut

    def _busy(self) -> int:
        return sum(connection.busy for connection in self.connections)

    def handle(self, connection: ClientConnection, request: Request) -> None:
        """One request, whole. Sets `connection.exchange` where its answer comes later."""
        kind = classify(request.method, request.path)
        if not isinstance(kind, ApiError) and self._admin is not None and (kind in ADMIN_KINDS) != self._admin:
            kind = errors.not_found(request.method, request.path)
        if self._access is not None:
            self._handle_keyed(self._access, connection, request, kind)
        elif isinstance(kind, ApiError):
            self._refuse(connection, request, kind)
        elif kind is not Kind.ROUTED:
            self._answer(connection, request, kind)
        else:
            self._route(connection, request, None)

    def stranger(self, request: Request) -> ApiError | None:
        """Why whoever sends this long body need not send the rest; None: go on."""
        key = self._access.identify(request) if self._access is not None else None
        if not isinstance(key, ApiError):
            return None
        self.metrics.denied.add(key.code or "")
        return key

    def reads_forms(self, request: Request) -> bool:
        """All of a form is read before any of it goes to an engine: its caller may not use every model."""
        return self._access is not None and self._access.is_bound(request)

    def handle_known(self, connection: ClientConnection, request: Request) -> None:
        """The same for a request whose head was seen before, which is one to route."""
        concurrency = self._concurrency
        if self.short_ways and concurrency.in_flight < concurrency.requests_max:
            concurrency.in_flight += 1
            exchange = connection.served_by
            if exchange is None:
                exchange = self.usual_class(self.gateway, connection)
            else:
                connection.served_by = None
            connection.exchange = exchange
            exchange.begin(request)
        else:
            self.handle(connection, request)

    def _handle_keyed(self, access: Access, connection: ClientConnection, request: Request, kind: Kind | ApiError) -> None:
        """The same where callers need a key."""
        if isinstance(kind, ApiError):
            self._refuse(connection, request, kind)
        elif kind in OPEN_KINDS:
            self._answer(connection, request, kind)
        elif kind is Kind.ROUTED:
            permit = access.admit(request, self.clock.now())
            if isinstance(permit, ApiError):
                self.metrics.denied.add(permit.code or "")
                self._refuse(connection, request, permit, access.rate_headers(request, self.clock.now()))
            else:
                self._route(connection, request, permit)
        else:
            key = access.identify(request)
            if isinstance(key, ApiError):
                self.metrics.denied.add(key.code or "")
                self._refuse(connection, request, key)
            else:
                self._answer(connection, request, kind, key)

    def _route(self, connection: ClientConnection, request: Request, permit: Permit | None) -> None:
        if not self.gateway.concurrency.enter():
            if permit is not None:
                permit.close(0, self.clock.now())
            full = f"This router is serving {self.settings.requests_max} requests already."
            self._refuse(connection, request, errors.overloaded(full, "router_full"))
        else:
            exchange = self.exchange_class(self.gateway, connection, request, permit)
            connection.exchange = exchange
            exchange.start()

    # --- answered here ---

    def _answer(self, connection: ClientConnection, request: Request, kind: Kind, key: Key | None = None) -> None:
        if kind is Kind.HEALTH:
            self._send(connection, request, 200, b"")
        elif kind is Kind.READY:
            ready, detail = self._ready()
            self._send(connection, request, 200 if ready else 503, _json.encode(detail))
        elif kind is Kind.METRICS:
            self._send(connection, request, 200, self.metrics.page(), content_type=b"text/plain; version=0.0.4; charset=utf-8")
        elif kind is Kind.PREFLIGHT:
            self._send(connection, request, 204, b"", extra=_PREFLIGHT_HEADERS if self.settings.cors_origin else ())
        else:
            self._models(connection, request, kind, key)

    def _models(self, connection: ClientConnection, request: Request, kind: Kind, key: Key | None) -> None:
        fleet = self.gateway.fleet
        if fleet.view is None:
            missing = "The fleet is not known yet: no control plane has answered."
            self._refuse(connection, request, errors.overloaded(missing, "no_fleet_view"))
            return
        # Base models before adapters, as an engine lists them: callers that take the first get the model itself.
        models = sorted(fleet.view.models, key=lambda model: (model.base not in ("", model.name), model.name))
        if key is not None and key.models:
            models = [model for model in models if model.name in key.models]
        entries = [_model_entry(model.name, model.base, model.max_model_len) for model in models]
        if kind is Kind.MODELS:
            self._send(connection, request, 200, _json.encode({"object": "list", "data": entries}))
            return
        name = unquote(request.path.removeprefix("/v1/models/"))
        for entry in entries:
            if entry["id"] == name:
                self._send(connection, request, 200, _json.encode(entry))
                return
        self._refuse(connection, request, errors.unknown_model(name))

    def _ready(self) -> tuple[bool, dict[str, object]]:
        gateway = self.gateway
        fleet, view = gateway.fleet, gateway.fleet.view
        ready = view is not None and fleet.endpoints_available > 0 and not gateway.draining
        models = view.models if view is not None else ()
        return ready, {
            "ready": ready,
            "draining": gateway.draining,
            "control": "connected" if gateway.control.connected else "fallback",
            "control_target": gateway.control.target,
            "fleet": {
                "known": view is not None,
                "version": view.version if view is not None else 0,
                "warm": fleet.warm,
                "policy": view.policy if view is not None else "",
                "endpoints": len(view.endpoints) if view is not None else 0,
                "available": fleet.endpoints_available,
            },
            "tokenizers": gateway.prompts.status(models),
            "in_flight": gateway.concurrency.in_flight,
        }

    def _refuse(self, connection: ClientConnection, request: Request, refusal: ApiError, more: Iterable[bytes] = ()) -> None:
        extra = [*more]
        if refusal.status == 401:
            extra.append(errors.WHO)
        if refusal.retry_after_s:
            extra.append(b"retry-after: %d" % max(1, round(refusal.retry_after_s)))
        if refusal.allow:
            extra.append(b"allow: " + refusal.allow.encode())
        body = refusal.body_for(request.path)
        self._send(connection, request, refusal.status, body, extra=tuple(extra), code=refusal.code or "")

    def _send(
        self,
        connection: ClientConnection,
        request: Request,
        status: int,
        body: bytes,
        *,
        content_type: bytes = b"application/json",
        extra: tuple[bytes, ...] = (),
        code: str = "",
    ) -> None:
        request_id = request.get(b"x-request-id") or b"%032x" % random.getrandbits(128)
        close = request.http10 or not request.keep_alive or self.gateway.draining
        connection.write(
            reply(
                status,
                body,
                content_type=content_type,
                extra=(*extra, b"x-request-id: " + request_id, *self.extra_headers),
                close=close,
                head_only=request.method == "HEAD",
            )
        )
        self.answered(connection, request, status, request_id, code)
        connection.finished(close=close)

    # --- what an access log hears of ---

    def answered(self, connection: ClientConnection, request: Request, status: int, request_id: bytes, code: str) -> None:
        """Without a worker. code: of the error object, where it was one."""

    def rejected(self, connection: ClientConnection, request: Request, refusal: ApiError) -> None:
        """It is not the HTTP that is spoken here."""
        self.metrics.protocol_errors.add(refusal.code or str(refusal.status))

    # --- deadlines ---

    def _sweep(self) -> None:
        """Every deadline of connections and requests, a few times a second: no timer a request."""
        now = self.clock.now()
        late_s, pause_s = now - self._sweep_due, self._sweep_s()
        # Timers come before sockets: what came while this process stood still is read first, and whoever stood still with it,
        # as its machine may, gets that time again. A loop that is always late is another matter.
        stood_still = late_s > LATE_S and not self._stood_still
        if stood_still:
            pause_s = min(late_s, STILL_S_MAX)
        self._stood_still, self._sweep_due = stood_still, now + pause_s
        self._sweeper = asyncio.get_running_loop().call_later(pause_s, self._sweep)  # whatever happens now
        if stood_still:
            return
        for connection in list(self.connections):
            try:
                connection.check(now)
            except Exception:  # a fault in one must not end the deadlines of all
                log.exception("a deadline could not be looked at")
                if connection.transport is not None:
                    connection.transport.abort()
        self.gateway.pool.sweep()
        self.metrics.fold()

    def _sweep_s(self) -> float:
        """A quarter of the shortest limit, within bounds."""
        settings = self.settings
        shortest = min(settings.head_timeout_s, settings.first_byte_timeout_s, settings.idle_timeout_s, settings.keep_alive_s)
        if settings.total_timeout_s:
            shortest = min(shortest, settings.total_timeout_s)
        return max(SWEEP_S_MIN, min(SWEEP_S_MAX, shortest / 4))


def _model_entry(name: str, base: str, max_model_len: int) -> dict[str, object]:
    """As OpenAI and vLLM list a model."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "headway",
        "root": base or name,
        "parent": base if base and base != name else None,
        "max_model_len": max_model_len or None,
    }

"""Server and exchanges with an access log: the others are the same and do not know of it.

A line is made where a request leaves: in `Exchange._leave`, at the end of the short way (`usual`), where the server answers by
itself, and of what is no HTTP.
"""

from __future__ import annotations

from contract.outcome import End
from dataplane.access_log import PATH_CHARS_MAX, AccessLog, Line, microseconds
from dataplane.attempt import END_NAMES
from dataplane.connection import ClientConnection
from dataplane.errors import ApiError
from dataplane.exchange import Exchange, State
from dataplane.gateway import Client, Gateway
from dataplane.http1 import Request
from dataplane.limits import Permit
from dataplane.prompts import PREDICTING
from dataplane.rows import EndedRow
from dataplane.server import Server
from dataplane.upstream import UpstreamConnection
from dataplane.usual import UsualExchange
from dataplane.wishes import NAME_CHARS_MAX

PROBED = frozenset(("/health", "/ping", "/ready", "/metrics"))
"""Left out while they are answered well: balancers and Prometheus ask all the time."""
ANSWERED, REFUSED, CLIENT_GONE = "answered", "refused", "client_gone"
_DONE = State.DONE


def log_of(gateway: Gateway) -> AccessLog:
    assert gateway.access_log is not None
    return gateway.access_log


class LoggedExchange(Exchange):
    """An exchange whose end is written down."""

    __slots__ = ("_end", "_error", "_first_at", "_peer", "_status")

    def __init__(self, gateway: Gateway, client: Client, request: Request, permit: Permit | None = None) -> None:
        super().__init__(gateway, client, request, permit)
        self._peer = peer_of(client)
        self._note_nothing()

    def _note_nothing(self) -> None:
        self._status, self._end, self._error, self._first_at = 0, "", "", 0.0

    def _count(self, status: int) -> None:
        self._status = status
        super()._count(status)

    def _write_refusal(self, refusal: ApiError) -> bool:
        self._error = refusal.code or ""
        return super()._write_refusal(refusal)

    def _close_attempt(self, end: End) -> None:
        attempt = self._attempt
        if attempt is not None:  # the last one is the answer
            self._end, self._first_at = END_NAMES[end], attempt.first_at
        super()._close_attempt(end)

    def _leave(self) -> None:
        if self._state is not _DONE:
            self._write_line()
        super()._leave()

    def _write_line(self) -> None:
        now, relay = self._now(), self._relay
        line = self._line(self._status, self._end or (REFUSED if self._error else CLIENT_GONE), now)
        line.error = self._error
        if self._first_at:
            line.ttft_s = microseconds(self._first_at - self._started_at)
        if relay is not None and not self._error:
            ending = relay.ending
            line.prompt_tokens = _known(ending.prompt_tokens)
            line.cached_tokens = _known(ending.cached_tokens)
            line.output_tokens = _known(ending.output_tokens)
            if line.output_tokens < 0 and relay.is_stream and relay.chunks is not None and self._first_at:
                line.output_tokens = relay.chunk_count - ending.done  # as `report` has it
        log_of(self._gateway).add(line)

    def _line(self, status: int, end: str, now: float) -> Line:
        """With everything but tokens and TTFT."""
        request, ask, permit = self._request, self._ask, self._permit
        access_log = log_of(self._gateway)
        line = Line(
            access_log.now(), self._request_name, self._peer, request.method, request.path[:PATH_CHARS_MAX], status, end,
            microseconds(now - self._started_at), permit.key.tenant if permit is not None else "", "", ask.model, ask.streams,
        )  # fmt: skip
        if self._targets:
            target = self._targets[-1]
            line.worker, line.rank, line.policy, line.attempts = target.worker, target.rank, target.policy, len(self._targets)
            if target.decision_id:
                line.decision = f"{target.decision_id:016x}"
                if self._prompt.kind in PREDICTING:
                    line.matched_tokens = target.matched_tokens
        return line


class LoggedUsualExchange(LoggedExchange, UsualExchange):
    """The same of one that takes the short way."""

    __slots__ = ()

    def __init__(self, gateway: Gateway, client: Client) -> None:
        UsualExchange.__init__(self, gateway, client)
        self._peer = peer_of(client)
        self._note_nothing()

    def _done(self, connection: UpstreamConnection, row: EndedRow, now: float) -> None:
        assert self._attempt is not None
        line = self._line(200, "complete", now)
        _, _, _, _, _, line.output_tokens, line.prompt_tokens, line.cached_tokens, *_ = row
        if self._attempt.first_at:
            line.ttft_s = microseconds(self._attempt.first_at - self._started_at)
        log_of(self._gateway).add(line)
        super()._done(connection, row, now)


class LoggedServer(Server):
    """A server whose every answer is written down, but for probes that went well."""

    exchange_class = LoggedExchange
    usual_class = LoggedUsualExchange

    def answered(self, connection: ClientConnection, request: Request, status: int, request_id: bytes, code: str) -> None:
        if status < 400 and request.path in PROBED:
            return
        access_log = log_of(self.gateway)
        access_log.add(
            Line(
                access_log.now(),
                request_id[:NAME_CHARS_MAX].decode("latin-1"),
                peer_of(connection),
                request.method,
                request.path[:PATH_CHARS_MAX],
                status,
                ANSWERED if status < 400 else REFUSED,
                0.0,
                error=code,
            )
        )

    def rejected(self, connection: ClientConnection, request: Request, refusal: ApiError) -> None:
        super().rejected(connection, request, refusal)
        self.answered(connection, request, refusal.status, request.get(b"x-request-id"), refusal.code or "")


def peer_of(client: Client) -> str:
    """The address of the other side; "": it has left."""
    peer = client.transport.get_extra_info("peername") if client.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) else ""


def _known(tokens: int | None) -> int:
    return -1 if tokens is None else tokens

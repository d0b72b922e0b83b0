"""One routed request as its caller sees it: what is asked and forwarded for it, the head and the end of its answer.

What it goes through is in `exchange`; here is what does not depend on where it is.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.routing import Answer, Asked, numbered
from dataplane import headers, question, trace
from dataplane.errors import ApiError
from dataplane.gateway import Client, Gateway
from dataplane.hedge import Rival
from dataplane.http1 import Request, forward_head, reply
from dataplane.limits import Permit
from dataplane.openai import DONE_PATHS, Ask, path_label
from dataplane.prompts import PREDICTING, Prompt
from dataplane.relay import Relay
from dataplane.upstream import UpstreamConnection
from dataplane.wishes import NAME_CHARS_MAX

_JOIN_BYTES_MAX = 64 * 1024
NOT_READ = Ask("")


class Served:
    """One request of one client. Its fields are set by `Exchange`: one constructor costs less than two."""

    __slots__ = (
        "_ask",
        "_client",
        "_closes",
        "_gateway",
        "_ids",
        "_now",
        "_permit",
        "_prompt",
        "_relay",
        "_request",
        "_request_name",
        "_rival",
        "_started_at",
        "_targets",
    )

    _gateway: Gateway
    _client: Client
    _request: Request
    _permit: Permit | None
    _now: Callable[[], float]
    _started_at: float
    _ask: Ask
    _prompt: Prompt
    _targets: tuple[Answer, ...]  # of its attempts, in their order
    _rival: Rival | None  # the second attempt that it has had, or may get
    _closes: bool  # the client was told that the connection ends with this response
    _relay: Relay | None  # of the attempt that is the answer
    _ids: bytes  # its name and trace, as header lines
    _request_name: str

    def _take_names(self) -> None:
        """The caller's names for the request and its trace, where it gave them."""
        name = self._request_name
        request_id = self._request.get(b"x-request-id") or name.encode()
        self._request_name = request_id[:NAME_CHARS_MAX].decode("latin-1")
        self._ids = trace.lines_of(request_id, self._continue_trace() or trace.begun(name))

    # --- towards control plane and engine ---

    def question(self) -> Asked:
        """This request as it stands, for the control plane."""
        return question.build(
            self._request,
            self._ask,
            self._prompt,
            request_id=self._request_name,
            attempt=len(self._targets),
            exclude=self._tried(),
            key=None if self._permit is None else self._permit.key,
        )

    def _tried(self) -> list[int]:
        """As the control plane that is asked now numbers them; another one may have chosen them. Of an engine of which one rank
        hangs while others move that rank alone."""
        if not self._targets:
            return []
        numbers, stuck_ranks = self._gateway.fleet.numbers, self._gateway.fleet.stuck_ranks
        return [
            numbered(numbers.get(target.url, target.endpoint), target.rank if (target.url, target.rank) in stuck_ranks else -1)
            for target in self._failed_at()
        ]

    def _failed_at(self) -> tuple[Answer, ...]:
        """Where it has been in vain, or is: a second attempt that failed was one, too."""
        rival = self._rival
        return self._targets if rival is None or rival.failed_at is None else (*self._targets, rival.failed_at)

    def new_relay(self) -> Relay:
        """For one response to this request."""
        request = self._request
        return Relay(
            hold_bytes_max=self._gateway.settings.hold_bytes_max,
            dechunk=request.http10,
            must_end_with_done=request.path in DONE_PATHS,
        )

    def write_request(self, connection: UpstreamConnection, target: Answer) -> bool:
        """False: the connection is gone."""
        request, transport = self._request, connection.transport
        if transport is None:
            return False
        if target.rank >= 0:
            connection.steps = connection.engine.rank(target.rank)
        head = forward_head(
            request,
            host=connection.host,
            ids=self._ids,
            rank=target.rank,
            credential=None if self._permit is None and self._gateway.credentials is None else self._credential(target),
        )
        body = request.body
        if request.stream is not None:
            transport.write(head)
            request.stream.attach(transport.write)
        elif len(body) <= _JOIN_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return True

    def _credential(self, target: Answer) -> bytes | None:
        """What the engine sees in place of the caller's key; None: the caller's own."""
        credentials = self._gateway.credentials
        if credentials is not None and (line := credentials.line(target.worker, target.url)):
            return line
        return None if self._permit is None else b""

    def _continue_trace(self) -> bytes:
        """A state without a trace that it belongs to means nothing: it is left out."""
        request = self._request
        given = request.get(b"traceparent")
        found = trace.continued(given) if given else b""
        if given and not found:
            request.headers = [(name, value) for name, value in request.headers if name != b"tracestate"]
        return found

    def _sent_whole(self) -> bool:
        """The engine has the whole request; a body that still comes goes to it no more."""
        stream = self._request.stream
        if stream is None:
            return True
        stream.detach()
        return stream.ended

    # --- towards the client ---

    def _our_lines(self) -> tuple[bytes, ...]:
        gateway = self._gateway
        if self._permit is None:
            return gateway.extra_headers
        return (*gateway.extra_headers, *self._permit.account.headers(gateway.clock.now()))

    def _response_head(self, relay: Relay) -> bytes:
        # Said now or not at all: a connection that closes unannounced fails the request that its client sends next.
        gateway = self._gateway
        self._closes = gateway.draining or self._must_close(relay)
        return headers.passed_on(
            relay,
            self._ids,
            headers.about(self._targets, predicted=self._prompt.kind in PREDICTING),
            gateway.extra_headers if self._permit is None else self._our_lines(),
            http10=self._request.http10,
            close=self._closes,
        )

    def _must_close(self, relay: Relay, *, broken: bool = False) -> bool:
        """The message's end is told by closing. broken: the engine did not end it.

        A chunked body was ended by ourselves then, with the error event in it, so the connection is as good as before: closing
        it without having said so would fail whatever the client sends on it next.
        """
        request = self._request
        if request.http10 or not request.keep_alive:
            return True
        return relay.chunks is None and (broken or relay.cut_short or (relay.head is not None and relay.head.length < 0))

    def _ends_by_closing(self, relay: Relay) -> bool:
        """Nothing but the connection's end tells the client where the body ends."""
        return not relay.is_sized and (relay.chunks is None or self._request.http10)

    def _write_refusal(self, refusal: ApiError) -> bool:
        """Whether the connection ends with it."""
        self._count(refusal.status)
        request = self._request
        close = refusal.close or request.http10 or not request.keep_alive or self._gateway.draining
        extra = [*self._our_lines()]
        if refusal.retry_after_s:
            extra.append(b"retry-after: %d" % max(1, round(refusal.retry_after_s)))
        about = headers.about(self._targets, predicted=self._prompt.kind in PREDICTING)
        about = self._ids + about
        self._client.write(reply(refusal.status, refusal.body_for(request.path), extra=extra, about=about, close=close))
        return close

    def _count(self, status: int) -> None:
        metrics = self._gateway.metrics
        if status == 200:
            metrics.good[self._request.path].count += 1
        else:
            metrics.requests.cell(path_label(self._request.path), str(status)).count += 1
        metrics.e2e.observe(self._now() - self._started_at)

    def _close_permit(self, permit: Permit) -> None:
        """The request leaves its key's account, with the tokens that it took; and its tenant is known to have used them."""
        prompt, output = self._used_tokens(permit)
        permit.close(prompt + output, self._gateway.clock.now())
        metrics, tenant = self._gateway.metrics, permit.key.tenant
        metrics.tenant_requests.add(tenant)
        metrics.tenant_tokens.add(tenant, "prompt", by=prompt)
        metrics.tenant_tokens.add(tenant, "output", by=output)

    def _used_tokens(self, permit: Permit) -> tuple[int, int]:
        """Prompt and output, as the engine says it; else by what was seen. 0, 0: no engine worked for it."""
        relay = self._relay
        if relay is None:
            return 0, 0
        if relay.head is None:  # whoever leaves before the answer to a prompt has had it computed all the same
            return permit.prompt_tokens if self._client.transport is None else 0, 0
        if relay.head.status >= 400:
            return 0, 0
        prompt, output = relay.ending.prompt_tokens, relay.ending.output_tokens
        if prompt is None:
            prompt = permit.prompt_tokens
        if output is None:
            output = relay.chunk_count if relay.is_stream else 0
        return prompt, output

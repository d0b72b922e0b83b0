"""One routed request, from its body to its outcome, as an explicit state machine driven by callbacks.

    PREPARING  body -> model, token ids, block hashes (large ones in a thread)
    ASKING     a question is with the control plane
    CONNECTING a connection to the decided endpoint is being made
    WAITING    sent; whatever came back is held: the request may still go elsewhere
    RELAYING   bytes have reached the client: this endpoint's answer is the answer
    DONE

Every attempt that was decided is reported exactly once, by `_close_attempt`. Retries come before RELAYING only, within a
budget, and never at an endpoint that was tried.
"""

from __future__ import annotations

import asyncio
import random
from enum import IntEnum

from contract.outcome import End
from dataplane import errors, headers, question, trace
from dataplane.errors import ApiError
from dataplane.gateway import Client, Gateway, Target, decided
from dataplane.hedge import Rival
from dataplane.http1 import FramingError, Request, forward_head, reply
from dataplane.limits import BODY_BYTES_PER_TOKEN, Permit
from dataplane.openai import DONE_PATHS, PROMPT_PATHS, Ask, path_label, read_ask
from dataplane.prompts import UNREAD, Prompt
from dataplane.relay import Phase, Relay
from dataplane.report import outcome
from dataplane.upstream import UpstreamConnection
from proto import routing_pb2 as pb

_JOIN_BYTES_MAX = 64 * 1024
_COLD = (pb.Shed.UNKNOWN_MODEL, pb.Shed.NO_WORKER)
_BLAMES_ENDPOINT = (End.CONNECT_FAILED, End.RESET, End.TIMED_OUT, End.ENGINE_ERROR, End.ENGINE_ABORTED)


class State(IntEnum):
    PREPARING = 0
    ASKING = 1
    CONNECTING = 2
    WAITING = 3
    RELAYING = 4
    DONE = 5


_PREPARING, _ASKING, _CONNECTING, _WAITING, _RELAYING, _DONE = State
_ENDED = Phase.ENDED
_END_NAMES = {end: end.name.lower() for end in End}


class Exchange:
    """One request of one client."""

    __slots__ = (
        "_ask",
        "_attempts",
        "_client",
        "_closes",
        "_connection",
        "_excluded",
        "_failure",
        "_first_at",
        "_gateway",
        "_last_at",
        "_permit",
        "_prompt",
        "_question_id",
        "_relay",
        "_request",
        "_request_id",
        "_rival",
        "_sent_at",
        "_shown",
        "_spare",
        "_started_at",
        "_state",
        "_target",
        "_traceparent",
        "_tried",
    )

    def __init__(self, gateway: Gateway, client: Client, request: Request, permit: Permit | None = None) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self._permit = permit
        self._state = _PREPARING
        self._started_at = gateway.clock.now()
        self._request_id = request.get(b"x-request-id") or b"%032x" % random.getrandbits(128)
        self._traceparent = self._continue_trace() if request.get(b"traceparent") else b""
        self._ask = Ask("")
        self._prompt: Prompt = UNREAD
        self._question_id = 0
        self._target: Target | None = None
        self._shown: Target | None = None  # the last one, for the response headers
        self._connection: UpstreamConnection | None = None
        self._relay: Relay | None = None
        self._rival: Rival | None = None
        self._closes = False  # the client was told that the connection ends with this response
        self._attempts = 0
        self._tried: set[str] = set()
        self._excluded: list[int] = []
        self._failure: ApiError | None = None  # of the last attempt
        self._spare: Relay | None = None  # the last attempt's response, where it was complete
        self._sent_at = self._first_at = self._last_at = 0.0

    # --- PREPARING ---

    def start(self) -> None:
        gateway = self._gateway
        gateway.exchanges.add(self)
        gateway.budget.earn()
        if gateway.hedges is not None:
            gateway.hedges.earn()
        ask = read_ask(self._request, gateway.settings.body_bytes_max)
        if isinstance(ask, ApiError):
            self._refuse(ask)
            return
        if not ask.model:
            only = self._only_model()
            if only is None:
                self._refuse(errors.bad_request("You must provide a `model`.", param="model", code="model_missing"))
                return
            ask = only
        if self._permit is not None and (denied := self._permit.model_refusal(ask.model)) is not None:
            self._deny(denied)
            return
        self._ask = ask
        path = self._request.path
        model = gateway.fleet.models.get(ask.model) if path in PROMPT_PATHS and ask.readable else None
        body = self._request.body
        if gateway.prompts.is_quick(model, len(body)):
            self._prepared(gateway.prompts.prepare(path, ask, body, model), self._started_at)
            return
        loop, began = asyncio.get_running_loop(), self._started_at
        future = gateway.executor.submit(gateway.prompts.prepare, path, ask, body, model)
        future.add_done_callback(
            lambda done: done.cancelled() or loop.call_soon_threadsafe(self._prepared, done.result(), began)
        )

    def _only_model(self) -> Ask | None:
        """For a form that names no model: the one there is; None: there are several."""
        fleet = self._gateway.fleet
        return Ask(fleet.only_model, readable=False) if fleet.only_model or fleet.view is None else None

    def _prepared(self, prompt: Prompt, began: float) -> None:
        if self._state is not _PREPARING:
            return
        metrics = self._gateway.metrics
        metrics.chains.add(prompt.kind)
        metrics.prompt.observe(self._gateway.clock.now() - began)
        self._prompt = prompt
        if self._permit is not None and (denied := self._reserve(self._permit)) is not None:
            self._deny(denied)
        else:
            self._ask_control()

    def _reserve(self, permit: Permit) -> ApiError | None:
        tokens = self._prompt.input_tokens
        if not tokens and self._ask.readable:
            tokens = len(self._request.body) // BODY_BYTES_PER_TOKEN
        return permit.reserve(tokens, self._ask.max_tokens, self._gateway.clock.now())

    def _deny(self, denied: ApiError) -> None:
        self._gateway.metrics.denied.add(denied.code or "")
        self._refuse(denied)

    # --- ASKING ---

    def _ask_control(self) -> None:
        self._state = _ASKING
        if not self._gateway.control.connected:
            self._fall_back()
            return
        self._question_id = self._gateway.control.ask(self.question(), self._decided)

    def _decided(self, decision: pb.Decision | None) -> None:
        if self._state is not _ASKING:
            return
        self._question_id = 0
        if decision is None:
            self._fall_back()
        elif decision.HasField("shed"):
            self._shed(decision.shed)
        elif decision.url in self._tried:
            # Endpoint numbers changed under a control plane restart: do not try the same engine twice.
            self._gateway.control.release(decision)
            self._fall_back()
        else:
            self._gateway.metrics.decisions.add("control")
            self._go(decided(decision))

    def _shed(self, shed: pb.Shed) -> None:
        fleet = self._gateway.fleet
        if shed.reason in _COLD and not fleet.warm and fleet.knows(self._ask.model):
            self._fall_back()  # a control plane that has just started does not know its fleet yet
            return
        self._gateway.metrics.sheds.add(pb.Shed.Reason.Name(shed.reason).lower())
        self._give_up(errors.from_shed(shed, self._ask.model))

    def _fall_back(self) -> None:
        gateway, model = self._gateway, self._ask.model
        if gateway.fleet.view is None:
            gateway.metrics.sheds.add("no_fleet_view")
            self._give_up(errors.overloaded("The fleet is not known yet: no control plane has answered.", "no_fleet_view"))
            return
        if not gateway.fleet.knows(model):
            gateway.metrics.sheds.add("unknown_model")
            self._give_up(errors.unknown_model(model))
            return
        chosen = gateway.fleet.choose(model, self._tried, gateway.clock.now())
        if chosen is None:
            gateway.metrics.sheds.add("excluded")
            self._give_up(errors.overloaded(f"No other worker of `{model}` is left to try.", "all_tried"))
            return
        gateway.metrics.decisions.add("fallback")
        self._go(Target(chosen.endpoint, chosen.url, chosen.worker, policy="fallback", by_fallback=True))

    # --- CONNECTING ---

    def _go(self, target: Target) -> None:
        gateway = self._gateway
        self._target = self._shown = target
        self._attempts += 1
        self._tried.add(target.url)
        self._excluded.append(target.endpoint)
        self._sent_at = gateway.clock.now()
        self._first_at = 0.0
        self._relay = None
        gateway.fleet.began(target.url)
        # A body that is gone once sent finds out nothing from a connection that had been closed: it gets a new one.
        connection = gateway.pool.take(target.url) if self._request.stream is None else None
        if connection is not None:
            self._send(connection)
        else:
            self._connect(target)

    def _connect(self, target: Target) -> None:
        self._state = _CONNECTING

        def done(found: UpstreamConnection | Exception) -> None:
            if self._state is not _CONNECTING or self._target is not target:
                if isinstance(found, UpstreamConnection):
                    self._gateway.pool.give(found)
            elif isinstance(found, UpstreamConnection):
                self._send(found)
            else:
                why = str(found) or type(found).__name__
                failure = errors.bad_gateway(f"Worker {target.worker} cannot be reached: {why}.")
                self._failed(End.CONNECT_FAILED, failure, spare=None, retry=self._may_retry())

        self._gateway.pool.connect(target.url, done)

    def _send(self, connection: UpstreamConnection) -> None:
        target, request = self._target, self._request
        assert target is not None
        self._state = _WAITING
        self._connection = connection
        connection.owner = self
        self._relay = self.new_relay()
        self._last_at = self._gateway.clock.now()
        if not self.write_request(connection, target):
            connection.owner = None
            self.upstream_lost(None)
        elif self._gateway.hedges is not None and self._attempts == 1 and self._ask.streams and request.stream is None:
            self._rival = self._rival or self._gateway.hedges.arm(self, target, self._prompt.input_tokens)

    def new_relay(self) -> Relay:
        """For one response to this request."""
        request = self._request
        return Relay(
            hold_bytes_max=self._gateway.settings.hold_bytes_max,
            dechunk=request.http10,
            must_end_with_done=request.path in DONE_PATHS,
        )

    def write_request(self, connection: UpstreamConnection, target: Target) -> bool:
        """False: the connection is gone."""
        request, transport = self._request, connection.transport
        if transport is None:
            return False
        head = forward_head(
            request,
            host=self._gateway.pool.host(target.url),
            request_id=self._request_id,
            traceparent=self._trace(),
            data_parallel_rank=target.rank,
            credential=self._credential(target),
        )
        if request.stream is not None:
            transport.write(head)
            request.stream.attach(transport.write)
        elif len(request.body) <= _JOIN_BYTES_MAX:
            transport.write(head + request.body)
        else:
            transport.write(head)
            transport.write(request.body)
        return True

    def _credential(self, target: Target) -> bytes | None:
        """What the engine sees in place of the caller's key; None: the caller's own."""
        gateway = self._gateway
        if gateway.credentials is not None:
            line = gateway.credentials.line(target.worker, target.url)
            if line:
                return line
        return None if self._permit is None else b""

    def _trace(self) -> bytes:
        if not self._traceparent:
            self._traceparent = trace.begun()
        return self._traceparent

    def _continue_trace(self) -> bytes:
        """A state without a trace that it belongs to means nothing: it is left out."""
        request = self._request
        found = trace.continued(request.get(b"traceparent"))
        if not found:
            request.headers = [(name, value) for name, value in request.headers if name != b"tracestate"]
        return found

    # --- WAITING and RELAYING: called by the connection ---

    def upstream_data(self, data: bytes) -> None:
        relay = self._relay
        assert relay is not None
        self._last_at = self._gateway.clock.now()
        try:
            out = relay.feed(data)
        except FramingError as error:
            self._broke(End.ENGINE_ERROR, f"its response is not HTTP: {error}")
            return
        if self._state is _RELAYING:
            if out:
                self._client.write(out)
            if relay.phase is _ENDED:
                self._complete()
        elif relay.ready:
            self._answered()

    def upstream_full(self, full: bool) -> None:
        """The engine reads slower than the client writes, or no longer so."""
        stream = self._request.stream
        if stream is not None and full:
            stream.pause()
        elif stream is not None:
            stream.resume()

    def upstream_lost(self, error: Exception | None) -> None:
        connection, relay = self._connection, self._relay
        assert relay is not None
        self._connection = None
        relay.closed()
        if relay.phase is _ENDED:
            if self._state is _RELAYING:
                self._complete()
            else:
                self._answered()
        elif connection is not None and connection.reused and not relay.begun and self._state is _WAITING:
            assert self._target is not None
            self._gateway.metrics.reconnects.add()
            self._connect(self._target)
        else:
            self._broke(End.RESET, f"the connection broke ({error})" if error else "the connection was closed early")

    def _answered(self) -> None:
        """Enough of a response is held to know whether it is one to pass on."""
        relay, target = self._relay, self._target
        assert relay is not None
        assert target is not None
        assert relay.head is not None
        verdict = relay.verdict()
        if verdict.retryable and self._rival_goes_on(verdict.end):
            return
        if verdict.retryable:
            says_so = relay.head.status >= 400
            failure = errors.bad_gateway(f"Worker {target.worker} failed ({_END_NAMES[verdict.end]}).")
            retry = self._may_retry()
            if retry or not (says_so or relay.error_event):
                # Without a retry: an abort without text, or a stream without an event, must not look like an answer.
                spare = relay if says_so and relay.phase is _ENDED else None
                self._failed(verdict.end, failure, spare=spare, retry=retry)
                return
        if relay.is_stream and verdict.end is End.COMPLETE:
            self._first_at = self._last_at
            self._gateway.metrics.ttft.observe(self._first_at - self._sent_at)
            self._gateway.control.first_byte(target.decision_id, self._first_at - self._sent_at)
            if self._gateway.hedges is not None:
                self._gateway.hedges.seen(target.url, self._first_at - self._sent_at)
        if self._rival is not None:
            self._rival.cancel()
        self._state = _RELAYING
        self._request.body = b""  # nobody else will get it
        if self._request.stream is not None:
            self._request.stream.forget()
        self._prompt = Prompt(self._prompt.kind, self._prompt.input_tokens)
        self._client.write(self._response_head(relay) + relay.release())
        if relay.phase is _ENDED:
            self._complete()

    def _complete(self) -> None:
        relay = self._relay
        assert relay is not None
        assert relay.head is not None
        if relay.cut_short:
            self._client.write(
                headers.error_event(
                    "The worker ended the stream without finishing it.", relay, self._request.path, http10=self._request.http10
                )
            )
        self._count(relay.head.status)
        self._close_attempt(relay.final())
        self._finish(close=self._closes or self._must_close(relay))

    def _must_close(self, relay: Relay, *, broken: bool = False) -> bool:
        """The message's end is told by closing. broken: the engine did not end it.

        A chunked body was ended by ourselves then, with the error event in it, so the connection is as good as before: closing
        it without having said so would fail whatever the client sends on it next.
        """
        request = self._request
        unframed = relay.chunks is None and (broken or relay.cut_short or (relay.head is not None and relay.head.length < 0))
        return request.http10 or not request.keep_alive or unframed

    # --- failure ---

    def _broke(self, end: End, why: str) -> None:
        """The attempt failed: elsewhere, or an end that cannot be mistaken for a good one."""
        target = self._target
        worker = target.worker if target is not None else "?"
        message = f"Worker {worker} failed: {why}."
        if self._state is _RELAYING:
            self._break_off(end, message)
        else:
            failure = errors.gateway_timeout(message) if end is End.TIMED_OUT else errors.bad_gateway(message)
            self._failed(end, failure, spare=None, retry=self._may_retry())

    def _failed(self, end: End, failure: ApiError, *, spare: Relay | None, retry: bool) -> None:
        """Nothing was passed on. spare: an answer that tells of the failure in the engine's own words."""
        if self._rival_goes_on(end):
            return
        self._failure, self._spare = failure, spare
        self._close_attempt(end)
        if retry:
            self._gateway.metrics.retries.add(_END_NAMES[end])
            self._ask_control()
        else:
            self._refuse(failure)

    # --- a second attempt beside the first: see `hedge` ---

    def is_waiting(self) -> bool:
        return self._state is _WAITING

    def question(self) -> pb.Question:
        """This request as it stands, for the control plane."""
        asked = question.build(
            self._request,
            self._ask,
            self._prompt,
            request_id=self._request_id,
            attempt=self._attempts,
            exclude=self._excluded,
        )
        if self._permit is not None:
            question.stamp(asked, self._permit.key)
        return asked

    def is_tried(self, url: str) -> bool:
        return url in self._tried

    def overtaken(self, rival: Rival) -> None:
        """The rival has an answer; ours had none."""
        self._close_attempt(End.CLIENT_GONE)
        self._take_over(rival)
        self._answered()

    def _rival_goes_on(self, end: End) -> bool:
        """Whether our attempt failed, and a second one that is under way takes its place."""
        rival = self._rival
        if rival is None:
            return False
        if not rival.is_running:
            rival.cancel()
            return False
        self._close_attempt(end)
        self._take_over(rival)
        return True

    def _take_over(self, rival: Rival) -> None:
        target, self._rival = rival.target, None
        assert target is not None
        rival.take_over()
        self._target = self._shown = target
        self._attempts += 1
        self._tried.add(target.url)
        self._excluded.append(target.endpoint)
        self._relay, self._connection = rival.relay, rival.connection
        self._sent_at, self._last_at, self._first_at = rival.sent_at, rival.last_at, 0.0
        self._state = _WAITING
        if self._connection is not None:
            self._connection.owner = self

    def _may_retry(self) -> bool:
        """Takes a retry from the budget."""
        gateway, stream = self._gateway, self._request.stream
        if stream is not None and not stream.replayable:
            return False
        return self._attempts < gateway.settings.attempts_max and gateway.budget.take(gateway.clock.now())

    def _give_up(self, refusal: ApiError) -> None:
        """No endpoint (any more): the last one's own answer where there is one."""
        spare, self._spare = self._spare, None
        if spare is None or spare.head is None:
            self._refuse(self._failure or refusal)
            return
        self._relay = spare
        self._client.write(self._response_head(spare) + spare.release())
        self._count(spare.head.status)
        self._finish(close=self._closes)

    def _break_off(self, end: End, message: str) -> None:
        relay = self._relay
        assert relay is not None
        assert relay.head is not None
        can_tell = relay.is_stream and relay.at_boundary
        self._count(relay.head.status)
        if can_tell:
            self._client.write(headers.error_event(message, relay, self._request.path, http10=self._request.http10))
        self._close_attempt(end)
        if can_tell:
            self._finish(close=self._closes or self._must_close(relay, broken=True))
        else:
            self._leave()
            self._client.cut()

    def _refuse(self, refusal: ApiError) -> None:
        self._count(refusal.status)
        close = refusal.close or self._request.http10 or not self._request.keep_alive or self._gateway.draining
        extra = [
            *headers.about(self._shown, self._attempts, predicted=self._prompt.kind in ("tokens", "text")),
            b"x-request-id: " + self._request_id,
            b"traceparent: " + self._trace(),
            *self._gateway.extra_headers,
        ]
        if refusal.retry_after_s:
            extra.append(b"retry-after: %d" % max(1, round(refusal.retry_after_s)))
        if self._permit is not None:
            extra += self._permit.account.headers(self._gateway.clock.now())
        self._client.write(reply(refusal.status, refusal.body_for(self._request.path), extra=extra, close=close))
        self._finish(close=close)

    def client_gone(self) -> None:
        """The client left: nothing more is written, and the engine is told by closing."""
        if self._state is _DONE:
            return
        self._gateway.control.cancel(self._question_id)
        self._count(499)
        self._close_attempt(End.CLIENT_GONE)
        self._leave()

    def pause(self) -> None:
        """The client reads slower than the engine writes."""
        if self._connection is not None and self._connection.usable and self._connection.transport is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        self._last_at = self._gateway.clock.now()
        if self._connection is not None and self._connection.usable and self._connection.transport is not None:
            self._connection.transport.resume_reading()

    def check(self, now: float) -> None:
        """Deadlines, asked about a few times a second."""
        settings = self._gateway.settings
        if settings.total_timeout_s and now - self._started_at > settings.total_timeout_s:
            self._out_of_time()
        elif self._state is _WAITING and now - self._sent_at > settings.first_byte_timeout_s:
            self._broke(End.TIMED_OUT, f"no first token within {settings.first_byte_timeout_s:g} s")
        elif self._state is _RELAYING:
            stalled_since = self._client.stalled_since
            if not stalled_since and now - self._last_at > settings.idle_timeout_s:
                self._broke(End.TIMED_OUT, f"silent for {settings.idle_timeout_s:g} s amid the response")
            elif stalled_since and now - stalled_since > settings.client_stall_s:
                self.client_gone()
                self._client.cut()

    def _out_of_time(self) -> None:
        message = f"The request took longer than {self._gateway.settings.total_timeout_s:g} s."
        if self._state is _RELAYING:
            self._break_off(End.TIMED_OUT, message)
            return
        self._gateway.control.cancel(self._question_id)
        self._close_attempt(End.TIMED_OUT)
        self._refuse(errors.gateway_timeout(message))

    # --- the ends ---

    def _close_attempt(self, end: End) -> None:
        """The attempt under way, if any, is over: connection, counts and outcome, once."""
        target, self._target = self._target, None
        if target is None:
            return
        connection, self._connection = self._connection, None
        self.settle(target, self._relay, connection, end, sent_at=self._sent_at, first_at=self._first_at, last_at=self._last_at)

    def settle(
        self,
        target: Target,
        relay: Relay | None,
        connection: UpstreamConnection | None,
        end: End,
        *,
        sent_at: float,
        first_at: float,
        last_at: float,
    ) -> None:
        """Connection, counts and outcome of one attempt."""
        gateway = self._gateway
        now = gateway.clock.now()
        if connection is not None:
            if relay is not None and relay.reusable and end is not End.CLIENT_GONE and self._sent_whole():
                if self._client.stalled_since and connection.transport is not None:
                    connection.transport.resume_reading()
                gateway.pool.give(connection)
            else:
                connection.abort()
        gateway.fleet.ended(target.url)
        if end in _BLAMES_ENDPOINT:
            gateway.fleet.failed(target.url, now)
        gateway.metrics.attempts.add(_END_NAMES[end])
        gateway.control.report(
            outcome(
                decision_id=target.decision_id,
                end=end,
                relay=relay,
                sent_at=sent_at,
                first_at=first_at,
                last_at=last_at,
                now=now,
                request_id=self._request_id.decode("latin-1"),
                model=self._ask.model,
                url=target.url,
                input_tokens=self._prompt.input_tokens,
                connected=gateway.control.connected,
            )
        )

    def _sent_whole(self) -> bool:
        """The engine has the whole request; a body that still comes goes to it no more."""
        stream = self._request.stream
        if stream is None:
            return True
        stream.detach()
        return stream.ended

    @property
    def is_silent(self) -> bool:
        """Nothing has been written to the client."""
        return self._state < _RELAYING

    def _count(self, status: int) -> None:
        gateway = self._gateway
        gateway.metrics.requests.add(path_label(self._request.path), str(status))
        gateway.metrics.e2e.observe(gateway.clock.now() - self._started_at)

    def _leave(self) -> None:
        if self._state is not _DONE:
            self._state = _DONE
            if self._rival is not None:
                self._rival.cancel()
            self._gateway.exchanges.discard(self)
            self._gateway.concurrency.leave()
            if self._permit is not None:
                self._permit.close(self._used_tokens(self._permit), self._gateway.clock.now())

    def _used_tokens(self, permit: Permit) -> int:
        """As the engine says it; else by what was seen. 0: no engine worked for it."""
        relay = self._relay
        if relay is None or relay.head is None or relay.head.status >= 400:
            return 0
        prompt, output = relay.ending.prompt_tokens, relay.ending.output_tokens
        if prompt is None:
            prompt = permit.prompt_tokens
        if output is None:
            output = relay.chunks.chunks if relay.chunks is not None and relay.is_stream else 0
        return prompt + output

    def _finish(self, *, close: bool) -> None:
        self._leave()
        self._client.finished(close=close)

    def held(self) -> pb.Held | None:
        """This exchange's reservation, as it is now."""
        return None if self._target is None else self.reservation(self._target, first_byte_seen=self._first_at > 0)

    def reservation(self, target: Target, *, first_byte_seen: bool) -> pb.Held | None:
        if not target.decision_id:
            return None
        tokens = self._prompt.input_tokens
        return pb.Held(
            decision_id=target.decision_id,
            endpoint=target.endpoint,
            url=target.url,
            uncached_tokens=max(0, tokens - target.matched_tokens),
            input_tokens=tokens,
            first_byte_seen=first_byte_seen,
        )

    def _response_head(self, relay: Relay) -> bytes:
        ours = [
            *headers.about(self._shown, self._attempts, predicted=self._prompt.kind in ("tokens", "text")),
            b"traceparent: " + self._trace(),
            *self._gateway.extra_headers,
        ]
        if self._permit is not None:
            ours += self._permit.account.headers(self._gateway.clock.now())
        # Said now or not at all: a connection that closes unannounced fails the request that its client sends next.
        self._closes = self._gateway.draining or self._must_close(relay)
        return headers.passed_on(relay, self._request_id, ours, http10=self._request.http10, close=self._closes)

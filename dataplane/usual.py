"""The usual request by the shortest way: its head was seen before, the control plane answers, an idle connection takes it, and
the whole answer comes in one read.

Three steps of `exchange` are done here in one go each, in the places where nothing has happened yet that the general machine
would have to know of. Whatever is not usual goes there, before anything was done about it here. The tests of the data plane
run over both, and one holds them against each other: the same bytes, counts and outcomes.

It is chosen by the server, for processes without keys, credentials and hedging, and for requests whose head is known.
"""

from __future__ import annotations

from typing import Any

from contract.outcome import End
from contract.routing import Answer
from dataplane import preparing
from dataplane.admission import RETRY_TOKENS_MAX
from dataplane.attempt import Attempt
from dataplane.chat import read_chat
from dataplane.exchange import Exchange, State
from dataplane.gateway import Client, Gateway
from dataplane.headers import LAST_BITS, LAST_DIGITS, matched
from dataplane.http1 import LAST_CHUNK, FramingError, Request, ResponseHead, behind, parse_response_head
from dataplane.openai import PROMPT_PATHS, Ask, read_usual_json, read_whole_json
from dataplane.preparing import QUICK_BYTES_MAX
from dataplane.prompts import PREDICTING, SKIPPED, UNREAD, Prompt, skipped
from dataplane.relay import Relay
from dataplane.rows import EndedRow
from dataplane.served import NOT_READ
from dataplane.sse import Says, read_usual
from dataplane.upstream import IDLE_PER_ENDPOINT_MAX, UpstreamConnection

_PREPARING, _ASKING, _, _WAITING, _RELAYING, _DONE = State
_COMPLETE = int(End.COMPLETE)
_CONTENT = Says.CONTENT
_LAST_MASK = (1 << LAST_BITS) - 1
_NOTHING = Request()


class UsualExchange(Exchange):
    """An exchange that takes the short way as long as there is one.

    One that took it to the end serves its connection's next request, too: `begin` finds everything as `__init__` left it.
    """

    __slots__ = ()

    def __init__(self, gateway: Gateway, client: Client) -> None:
        self._gateway = gateway
        self._client = client
        self._request = _NOTHING
        self._permit = None
        self._now = gateway.clock.now
        self._ask = NOT_READ
        self._prompt = UNREAD
        self._targets = ()
        self._closes = False
        self._relay = None
        self._state = _DONE
        self._question_id = 0
        self._attempt = None
        self._rival = None
        self._failure = None
        self._spare = None

    def begin(self, request: Request) -> None:
        """Serve it. Its head is known."""
        gateway = self._gateway
        self._request = request
        self._started_at = self._now()
        names = gateway.ids.ready
        if not names:
            gateway.ids.fill()
        self._request_name, self._ids = names.pop()
        self._state = _PREPARING
        body, path, wanted = request.body, request.path, gateway.prompts.wanted
        ask: Ask | None
        fields: Any = None
        if not wanted:
            ask = read_usual_json(body)
        elif len(body) <= QUICK_BYTES_MAX:
            ask, fields = read_chat(body, path) or read_whole_json(body, path) or (None, None)
        else:
            ask = None
        if ask is None or not ask.model:
            self.start()
            return
        gateway.exchanges.add(self)
        budget = gateway.budget
        if budget.tokens < RETRY_TOKENS_MAX:
            budget.earn()
        self._ask = ask
        model = gateway.fleet.models.get(ask.model)
        if model is None or path not in PROMPT_PATHS:
            preparing.prepare(gateway, request, ask, self._prepared, fields)
        elif wanted:
            prompts = gateway.prompts
            prompt = prompts.prepare(path, ask, body, prompts.plan(ask.model, model), fields)
            now = self._now()
            gateway.metrics.prompt.observe(now - self._started_at)
            self._ask_about(prompt, now)
        else:
            self._ask_about(SKIPPED.get(len(body)) or skipped(len(body)), self._started_at)

    def _prepared(self, prompt: Prompt) -> None:
        if self._state is _PREPARING:
            self._ask_about(prompt, self._now())

    def _ask_about(self, prompt: Prompt, now: float) -> None:
        gateway = self._gateway
        control = gateway.control
        if not control.connected:
            super()._prepared(prompt)
            return
        gateway.metrics.prompts[prompt.kind].count += 1
        self._prompt = prompt
        self._state = _ASKING
        ask, kind = self._ask, prompt.kind
        self._question_id = control.ask_usual(
            (
                ask.model, prompt.input_tokens, kind == "tokens", ask.max_tokens, "", 0, 0.0, (), "", self._request_name, 0,
                ask.streams,
            ),
            prompt.chains,
            self._decided,
            now,
        )  # fmt: skip

    def _decided(self, answer: Answer | None) -> None:
        if answer is None or answer.refusal is not None or answer.rank >= 0 or self._state is not _ASKING or self._targets:
            super()._decided(answer)
            return
        gateway = self._gateway
        pool, now = gateway.pool, gateway.control.taken_at
        engine = pool.engines[answer.url]
        idle = engine.idle
        if not idle or now - idle[-1].idle_since > pool.idle_s:
            super()._decided(answer)
            return
        # It may be closing in this very turn: then it breaks before a response byte, which is repaired.
        connection = idle.pop()
        connection.reused = True
        engine.active += 1
        self._question_id = 0
        gateway.metrics.by_control.count += 1
        self._targets = (answer,)
        self._attempt = Attempt(answer, now, now, connection)
        self._state = _WAITING
        connection.owner = self
        request = self._request
        assert request.forwarded is not None
        before, after = request.forwarded
        connection.write(b"".join((before, connection.host, after, self._ids, b"\r\n\r\n", request.body)))

    def upstream_data(self, data: bytes) -> None:
        relay = self._relay
        if relay is None:
            if self._ask.streams:
                self._begin_stream(data)
                return
            if self._answer_whole(data):
                return
            self._begin_relay()
        elif self._state is _WAITING:
            if self._hold_events(relay, data):
                return
        elif data[-5:] == LAST_CHUNK and self._end_stream(relay, data):
            return
        super().upstream_data(data)

    def upstream_lost(self, error: Exception | None) -> None:
        if self._relay is None:
            self._begin_relay()
        super().upstream_lost(error)

    def _begin_relay(self) -> Relay:
        """What the general machine would have done when it sent the request."""
        assert self._attempt is not None
        relay = self._attempt.relay = self._relay = self.new_relay()
        return relay

    # --- a stream ---

    def _begin_stream(self, data: bytes) -> None:
        """Its head, and what came with it."""
        relay, attempt = self._begin_relay(), self._attempt
        assert attempt is not None
        assert attempt.connection is not None
        heads = attempt.connection.heads
        head, rest = heads.streams.get(data), b""
        if head is None:
            end = data.find(b"\r\n\r\n") + 4
            opening, rest = data[:end], data[end:]
            head = heads.streams.get(opening)
            if head is None:
                head = stream_head(opening)
                if head is None:
                    super().upstream_data(data)
                    return
                heads.add_stream(opening, head)
        relay.take_head(head)
        if rest and not self._hold_events(relay, rest):
            super().upstream_data(rest)

    def _hold_events(self, relay: Relay, data: bytes) -> bool:
        """Events before the stream is passed on, and perhaps its end with them; the first one with content is the first token.
        False: nothing was done."""
        ends = data[-5:] == LAST_CHUNK
        if not relay.take_events(data[:-5] if ends else data):
            return False
        gateway, client, attempt, head = self._gateway, self._client, self._attempt, relay.head
        assert attempt is not None
        assert head is not None
        connection, target = attempt.connection, attempt.target
        is_usual = relay.first is _CONTENT and not gateway.draining and len(self._targets) == 1
        # A rank, and that the control plane was not asked, have lines of their own in the head.
        if not is_usual or connection is None or target.rank != -1 or not target.decision_id:
            if ends:
                super().upstream_data(LAST_CHUNK)
            else:
                attempt.last_at = self._now()
                if relay.ready:
                    self._answered()
            return True
        attempt.last_at = self._now()
        self._first_token(attempt)
        self._state = _RELAYING
        self._request.body = b""  # nobody else will get it
        prompt = self._prompt
        if prompt.chains:
            self._prompt = Prompt(prompt.kind, prompt.input_tokens)
        connection.passing = relay  # first: the write below may pause it
        held = relay.open(client.write, connection.last, client.transport)
        body = held[0] if len(held) == 1 else b"".join(held)
        client.write(self._answer(connection, target, head.passed_on + b"\r\ntransfer-encoding: chunked", body))
        if ends and not self._end_stream(relay, LAST_CHUNK):
            super().upstream_data(LAST_CHUNK)
        return True

    def _end_stream(self, relay: Relay, data: bytes) -> bool:
        """The last read of a stream that is passed on. False: nothing was done, or it ended otherwise."""
        client, attempt, control = self._client, self._attempt, self._gateway.control
        assert attempt is not None
        connection, first_at = attempt.connection, attempt.first_at
        if connection is None or connection.passing is not relay or not relay.take_end(data):
            return False
        client.write(data)
        now = attempt.last_at = self._now()
        self._note_tokens(attempt)
        ending, head = relay.ending, relay.head
        assert head is not None
        if (
            ending.aborted or ending.error or not head.keep_alive or not first_at or self._closes or client.stalled_since
            or len(self._targets) > 1 or not control.connected or not attempt.target.decision_id or attempt.target.rank != -1
        ):  # fmt: skip
            self._complete(relay)
            return True
        output_tokens, prompt_tokens, cached_tokens = ending.output_tokens, ending.prompt_tokens, ending.cached_tokens
        if output_tokens is None:
            output_tokens = relay.chunk_count - 1  # less the one that says that it is done
        row = (
            attempt.target.decision_id, _COMPLETE, 200, first_at - attempt.sent_at, now - attempt.sent_at, output_tokens,
            -1 if prompt_tokens is None else prompt_tokens, -1 if cached_tokens is None else cached_tokens,
            True, (now - first_at) / (output_tokens - 1) if output_tokens > 1 else -1.0, self._request_name,
        )  # fmt: skip
        self._relay = None
        connection.pass_no_more()
        self._done(connection, row, now)
        return True

    # --- an answer in one read ---

    def _answer_whole(self, data: bytes) -> bool:
        """The answer's head and body, in one read; False: nothing was done."""
        gateway, client, attempt = self._gateway, self._client, self._attempt
        assert attempt is not None
        connection = attempt.connection
        assert connection is not None
        if client.stalled_since or gateway.draining or not gateway.control.connected:
            return False
        known = connection.heads.get(len(data))
        if known is not None and known[0] <= data < known[3]:
            _, start, passed_on, _ = known
        else:
            found = whole_head(data)
            if found is None:
                return False
            connection.heads.add(len(data), found)
            _, start, passed_on, _ = found
        body = data[start:]
        tokens = read_usual(body)
        if tokens is None:
            return False
        client.write(self._answer(connection, attempt.target, passed_on, body))
        now = self._now()
        prompt_tokens, output_tokens, cached_tokens = tokens
        row = (
            attempt.target.decision_id, _COMPLETE, 200, -1.0, now - attempt.sent_at, output_tokens, prompt_tokens,
            cached_tokens, False, -1.0, self._request_name,
        )  # fmt: skip
        self._done(connection, row, now)
        return True

    # --- both ---

    def _answer(self, connection: UpstreamConnection, target: Answer, passed_on: bytes, body: bytes) -> bytes:
        """passed_on: the engine's lines, behind which ours come; body: or its beginning."""
        gateway = self._gateway
        line, decision_id = gateway.decision_line, target.decision_id
        above = decision_id >> LAST_BITS
        if above != line.above:
            line.move(above)
        return b"".join(
            (
                passed_on,
                self._ids,
                connection.engine.lines(target.worker, target.policy),
                line.begins,
                LAST_DIGITS[decision_id & _LAST_MASK],
                matched(target.matched_tokens) if self._prompt.kind in PREDICTING else b"",
                gateway.last_lines,
                body,
            )
        )

    def _done(self, connection: UpstreamConnection, row: EndedRow, now: float) -> None:
        """It is complete, at its first attempt, and both connections stay."""
        gateway, client, engine = self._gateway, self._client, connection.engine
        metrics = gateway.metrics
        metrics.good[self._request.path].count += 1
        metrics.complete.count += 1
        metrics.e2e.observe(now - self._started_at)
        idle = engine.idle
        if client.stalled_since or len(idle) >= IDLE_PER_ENDPOINT_MAX:
            if client.stalled_since:
                connection.resume()  # it was told to wait amid the write, and is another request's from here on
            gateway.pool.give(connection, now)
        else:
            connection.owner = None
            connection.idle_since = now
            idle.append(connection)
        engine.active -= 1
        gateway.control.report(row)
        self._attempt = None
        self._targets = ()
        self._request = _NOTHING
        self._state = _DONE
        gateway.exchanges.discard(self)
        gateway.concurrency.in_flight -= 1
        client.served_by = self
        client.answered(now)


def stream_head(data: bytes) -> ResponseHead | None:
    """Of a usual stream, where nothing is behind it. None: it is none."""
    if data[-4:] != b"\r\n\r\n" or data.find(b"\r\n\r\n") != len(data) - 4:
        return None
    try:
        head = parse_response_head(data[:-4])
    except FramingError:
        return None
    return head if head.is_events and head.chunked and not head.has_request_id else None


def whole_head(data: bytes) -> tuple[bytes, int, bytes, bytes] | None:
    """Of a usual answer that came in one read: its head, how long that is, as it is passed on, what is `behind` it. None: it is
    none."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    try:
        head = parse_response_head(data[:end])
    except FramingError:
        return None
    if not head.is_plain or len(data) != end + 4 + head.length or not head.keep_alive or head.has_request_id:
        return None
    return data[: end + 4], end + 4, head.passed_on, behind(data[: end + 4])

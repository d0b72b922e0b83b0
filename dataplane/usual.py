"""The usual request by the shortest way: its head was seen before, the control plane answers, an idle connection takes it, and
the whole answer comes in one read.

Three steps of `exchange` are done here in one go each, in the places where nothing has happened yet that the general machine
would have to know of. Whatever is not usual goes there, before anything was done about it here. The tests of the data plane
run over both, and one holds them against each other: the same bytes, counts and outcomes.

It is chosen by the server, for processes without keys, credentials and hedging, and for requests whose head is known.
"""

from __future__ import annotations

from contract.outcome import End
from contract.routing import Answer
from dataplane import preparing
from dataplane.admission import RETRY_TOKENS_MAX
from dataplane.attempt import Attempt
from dataplane.exchange import Exchange, State
from dataplane.gateway import Client, Gateway
from dataplane.headers import LAST_BITS, LAST_DIGITS, matched
from dataplane.http1 import FramingError, Request, behind, parse_response_head
from dataplane.openai import PROMPT_PATHS, Ask, read_usual_json, read_whole_json
from dataplane.preparing import QUICK_BYTES_MAX
from dataplane.prompts import PREDICTING, SKIPPED, UNREAD, Prompt, skipped
from dataplane.served import NOT_READ
from dataplane.sse import read_usual
from dataplane.upstream import IDLE_PER_ENDPOINT_MAX

_PREPARING, _ASKING, _, _WAITING, _RELAYING, _DONE = State
_COMPLETE = int(End.COMPLETE)
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
        fields = None
        if not wanted:
            ask = read_usual_json(body)
        elif len(body) <= QUICK_BYTES_MAX:
            ask, fields = read_whole_json(body, path) or (None, None)
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
        if self._relay is None:
            if self._answer_whole(data):
                return
            self._begin_relay()
        super().upstream_data(data)

    def upstream_lost(self, error: Exception | None) -> None:
        if self._relay is None:
            self._begin_relay()
        super().upstream_lost(error)

    def _begin_relay(self) -> None:
        """What the general machine would have done when it sent the request."""
        assert self._attempt is not None
        self._attempt.relay = self._relay = self.new_relay()

    def _answer_whole(self, data: bytes) -> bool:
        """The answer's head and body, in one read; False: nothing was done."""
        gateway, client, attempt = self._gateway, self._client, self._attempt
        control = gateway.control
        assert attempt is not None
        connection = attempt.connection
        assert connection is not None
        if client.stalled_since or gateway.draining or not control.connected:
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
        target, engine, line = attempt.target, connection.engine, gateway.decision_line
        decision_id = target.decision_id
        above = decision_id >> LAST_BITS
        if above != line.above:
            line.move(above)
        client.write(
            b"".join(
                (
                    passed_on,
                    self._ids,
                    engine.lines(target.worker, target.policy),
                    line.begins,
                    LAST_DIGITS[decision_id & _LAST_MASK],
                    matched(target.matched_tokens) if self._prompt.kind in PREDICTING else b"",
                    gateway.last_lines,
                    body,
                )
            )
        )
        now = self._now()
        metrics = gateway.metrics
        metrics.good[self._request.path].count += 1
        metrics.complete.count += 1
        metrics.e2e.observe(now - self._started_at)
        connection.owner = None
        idle = engine.idle
        if client.stalled_since or len(idle) >= IDLE_PER_ENDPOINT_MAX:
            connection.resume()  # it was told to wait amid the write, and is another request's from here on
            gateway.pool.give(connection, now)
        else:
            connection.idle_since = now
            idle.append(connection)
        engine.active -= 1
        prompt_tokens, output_tokens, cached_tokens = tokens
        control.report(
            (
                decision_id, _COMPLETE, 200, -1.0, now - attempt.sent_at, output_tokens, prompt_tokens, cached_tokens,
                False, -1.0, self._request_name,
            )
        )  # fmt: skip
        self._attempt = None
        self._targets = ()
        self._request = _NOTHING
        self._state = _DONE
        gateway.exchanges.discard(self)
        gateway.concurrency.in_flight -= 1
        client.served_by = self
        client.answered(now)
        return True


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

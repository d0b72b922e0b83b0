"""The usual request by the shortest way: its head was seen before, the control plane answers, an idle connection takes it, and
the whole answer comes in one read.

Three steps of `exchange` are done here in one go each, in the places where nothing has happened yet that the general machine
would have to know of. Whatever is not usual goes there, before anything was done about it here. The tests of the data plane
run over both, and one holds them against each other: the same bytes, counts and outcomes.

It is chosen by the server, for processes without keys, credentials and hedging, and for requests whose head is known.
"""

from __future__ import annotations

from contract.outcome import End
from contract.routing import Answer, Asked, Ended
from contract.routing import Request as Wanted
from dataplane import preparing
from dataplane.admission import RETRY_TOKENS_MAX
from dataplane.attempt import Attempt
from dataplane.errors import ApiError
from dataplane.exchange import Exchange, State
from dataplane.headers import place
from dataplane.http1 import FramingError, parse_response_head
from dataplane.openai import PROMPT_PATHS, Ask, read_json, read_whole_json
from dataplane.preparing import QUICK_BYTES_MAX
from dataplane.prompts import PREDICTING, Prompt, skipped
from dataplane.sse import read_usual

_PREPARING, _ASKING, _, _WAITING, _RELAYING, _DONE = State
_COMPLETE = int(End.COMPLETE)


class UsualExchange(Exchange):
    """An exchange that takes the short way as long as there is one."""

    __slots__ = ()

    def start(self) -> None:
        gateway, request = self._gateway, self._request
        body, path = request.body, request.path
        ask: Ask | ApiError | None
        wanted = gateway.prompts.wanted
        if wanted and len(body) <= QUICK_BYTES_MAX:
            ask, fields = read_whole_json(body, path) or (None, None)
        else:
            ask, fields = read_json(body, path), None
        if ask is None or isinstance(ask, ApiError) or not ask.model:
            super().start()
            return
        gateway.exchanges.add(self)
        budget = gateway.budget
        if budget.tokens < RETRY_TOKENS_MAX:
            budget.earn()
        self._ask = ask
        if wanted or path not in PROMPT_PATHS or ask.model not in gateway.fleet.models:
            preparing.prepare(gateway, request, ask, self._prepared, fields)
        else:
            self._prepared(skipped(len(body)))

    def _prepared(self, prompt: Prompt) -> None:
        gateway = self._gateway
        control = gateway.control
        if self._state is not _PREPARING or not control.connected:
            super()._prepared(prompt)
            return
        gateway.metrics.prompts[prompt.kind].count += 1
        self._prompt = prompt
        self._state = _ASKING
        ask = self._ask
        wanted = Wanted(
            model=ask.model,
            input_tokens=prompt.input_tokens,
            exact_tokens=prompt.kind == "tokens",
            max_tokens=ask.max_tokens,
            request_id=self._request_name,
            streams=ask.streams,
        )
        # Reading a prompt takes time; where none was read it is still the time of the beginning.
        now = self._now() if gateway.prompts.wanted else self._started_at
        self._question_id = control.ask(Asked(0, wanted, prompt.chains), self._decided, now)

    def _decided(self, answer: Answer | None) -> None:
        request = self._request
        if answer is None or answer.refusal is not None or answer.rank >= 0 or self._state is not _ASKING or self._targets:
            super()._decided(answer)
            return
        gateway, url = self._gateway, answer.url
        now = self._now()
        connection = gateway.pool.take(url, now)
        if connection is None:
            super()._decided(answer)
            return
        self._question_id = 0
        gateway.metrics.by_control.count += 1
        self._targets = (answer,)
        gateway.fleet.active[url] += 1
        self._attempt = Attempt(answer, now, now, connection)
        self._state = _WAITING
        connection.owner = self
        assert request.forwarded is not None
        assert connection.transport is not None
        before, behind = request.forwarded
        connection.transport.write(b"".join((before, connection.host, behind, self._ids, b"\r\n\r\n", request.body)))

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
        if known is not None and data.startswith(known[0]):
            _, start, passed_on = known
        else:
            found = whole_head(data)
            if found is None:
                return False
            connection.heads.add(len(data), found)
            _, start, passed_on = found
        body = data[start:]
        tokens = read_usual(body)
        if tokens is None:
            return False
        target = attempt.target
        decision_id, url = target.decision_id, target.url
        if self._prompt.kind in PREDICTING:
            about = b"\r\nx-headway-decision: %016x\r\nx-headway-matched-tokens: %d" % (decision_id, target.matched_tokens)
        else:
            about = b"\r\nx-headway-decision: %016x" % decision_id
        where = place(target.worker, target.policy, 1)
        client.write(b"".join((passed_on, self._ids, where, about, gateway.extra_lines, b"\r\n\r\n", body)))
        now = self._now()
        metrics = gateway.metrics
        metrics.good[self._request.path].count += 1
        metrics.complete.count += 1
        metrics.e2e.observe(now - self._started_at)
        if client.stalled_since:
            connection.resume()  # it was told to wait amid the write, and is another request's from here on
        gateway.pool.give(connection, now)
        active = gateway.fleet.active
        if active[url] > 1:
            active[url] -= 1
        else:
            gateway.fleet.ended(url)
        prompt_tokens, output_tokens, cached_tokens = tokens
        control.report(
            Ended(
                decision_id=decision_id,
                end=_COMPLETE,
                http_status=200,
                e2e_s=now - attempt.sent_at,
                output_tokens=output_tokens,
                prompt_tokens=prompt_tokens,
                cached_tokens=cached_tokens,
                request_id=self._request_name,
            )
        )
        self._attempt = None
        self._state = _DONE
        gateway.exchanges.discard(self)
        gateway.concurrency.in_flight -= 1
        client.answered(now)
        return True


def whole_head(data: bytes) -> tuple[bytes, int, bytes] | None:
    """Of a usual answer that came in one read: its head, how long that is, and as it is passed on. None: it is none."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    try:
        head = parse_response_head(data[:end])
    except FramingError:
        return None
    if not head.is_plain or len(data) != end + 4 + head.length or not head.keep_alive or head.has_request_id:
        return None
    return data[: end + 4], end + 4, head.passed_on

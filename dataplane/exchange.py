"""One routed request, from its body to its outcome, as an explicit state machine driven by callbacks.

    PREPARING  body -> model, token ids, block hashes (large ones in a thread): `preparing`
    ASKING     a question is with the control plane
    CONNECTING a connection to the decided endpoint is being made
    WAITING    sent; whatever came back is held: the request may still go elsewhere
    RELAYING   bytes have reached the client: this endpoint's answer is the answer
    DONE

Every attempt that was decided is settled exactly once, by `_close_attempt`. Retries come before RELAYING only, within a
budget, and never at an endpoint that was tried. What happens where something fails is in `failing`.
"""

from __future__ import annotations

from enum import IntEnum

from contract.outcome import End
from contract.routing import Answer, Refusal
from dataplane import errors, headers, preparing, ranks
from dataplane.attempt import END_NAMES, Attempt, says_nothing
from dataplane.errors import ApiError
from dataplane.gateway import Client, Gateway
from dataplane.hedge import Rival
from dataplane.http1 import FramingError, Request
from dataplane.limits import Permit
from dataplane.openai import Ask
from dataplane.placing import place
from dataplane.prompts import UNREAD, Prompt
from dataplane.relay import Phase, Relay
from dataplane.served import NOT_READ, Served
from dataplane.upstream import UpstreamConnection
from proto import routing_pb2 as pb

_COLD = (pb.Shed.UNKNOWN_MODEL, pb.Shed.NO_WORKER)
_SHED_NAMES: dict[int, str] = {number: name.lower() for name, number in pb.Shed.Reason.items()}


class State(IntEnum):
    PREPARING = 0
    ASKING = 1
    CONNECTING = 2
    WAITING = 3
    RELAYING = 4
    DONE = 5


_PREPARING, _ASKING, _CONNECTING, _WAITING, _RELAYING, _DONE = State
_ENDED = Phase.ENDED
_COMPLETE, _CLIENT_GONE = End.COMPLETE, End.CLIENT_GONE


class Exchange(Served):
    """One request of one client, from its body to its outcome."""

    __slots__ = (
        "_attempt",
        "_failure",
        "_question_id",
        "_spare",
        "_state",
    )

    def __init__(self, gateway: Gateway, client: Client, request: Request, permit: Permit | None = None) -> None:
        self._gateway = gateway
        self._client = client
        self._request = request
        self._permit = permit
        self._now = gateway.clock.now
        self._started_at = self._now()
        self._ask = NOT_READ
        self._prompt = UNREAD
        self._targets = ()
        self._closes = False
        self._relay = None
        self._request_name, self._ids = gateway.ids.begin()
        if request.forwarded is None:  # else its head is known to hold neither
            self._take_names()
        self._state = _PREPARING
        self._question_id = 0
        self._attempt: Attempt | None = None  # the one under way
        self._rival = None
        self._failure: ApiError | None = None  # of the last attempt
        self._spare: Relay | None = None  # the last attempt's response, where it was complete

    # --- PREPARING ---

    def start(self) -> None:
        gateway = self._gateway
        gateway.exchanges.add(self)
        gateway.budget.earn()
        if gateway.hedges is not None:
            gateway.hedges.earn()
        preparing.read(gateway, self._request, self._permit, self._read)

    def _read(self, ask: Ask | ApiError, prompt: Prompt | None = None) -> None:
        """prompt: where it was prepared in one go."""
        if self._state is not _PREPARING:
            return
        if isinstance(ask, ApiError):
            self._refuse(ask)
            return
        self._ask = ask
        if prompt is not None:
            self._prepared(prompt)
        else:
            preparing.prepare(self._gateway, self._request, ask, self._prepared)

    def _prepared(self, prompt: Prompt) -> None:
        if self._state is not _PREPARING:
            return
        self._gateway.metrics.prompts[prompt.kind].count += 1
        self._prompt = prompt
        if self._permit is not None:
            denied = preparing.reserve(self._gateway, self._request, self._ask, prompt, self._permit)
            if denied is not None:
                self._refuse(denied)
                return
        self._ask_control()

    # --- ASKING ---

    def _ask_control(self) -> None:
        self._state = _ASKING
        control = self._gateway.control
        if control.connected:
            self._question_id = control.ask(self.question(), self._decided, self._now())
        else:
            self._fall_back()

    def _decided(self, answer: Answer | None) -> None:
        if self._state is not _ASKING:
            return
        self._question_id = 0
        if answer is None:
            self._fall_back()
        elif answer.refusal is not None:
            self._shed(answer.refusal)
        elif self.is_tried(answer):
            # Endpoint numbers changed under a control plane restart: do not try the same engine twice.
            self._gateway.control.release(answer)
            self._fall_back()
        else:
            self._gateway.metrics.by_control.count += 1
            self._go(answer if answer.rank < 0 else self.steered(answer))

    def _shed(self, refusal: Refusal) -> None:
        fleet = self._gateway.fleet
        if refusal.reason in _COLD and not fleet.warm and fleet.knows(self._ask.model):
            self._fall_back()  # a control plane that has just started does not know its fleet yet
            return
        self._gateway.metrics.sheds.add(_SHED_NAMES.get(refusal.reason, "other"))  # a newer control plane may have more reasons
        self._give_up(errors.from_refusal(refusal, self._ask.model))

    def _fall_back(self) -> None:
        chosen = place(self._gateway, self._ask.model, self._tried_urls())
        if isinstance(chosen, ApiError):
            self._give_up(chosen)
        else:
            self._go(chosen)

    # --- CONNECTING ---

    def _go(self, target: Answer) -> None:
        gateway, url = self._gateway, target.url
        now = gateway.clock.now()
        attempt = self._attempt = Attempt(target, now, now)
        self._relay = None
        self._targets += (target,)
        gateway.fleet.began(url)
        # A body that is gone once sent finds out nothing from a connection that had been closed: it gets a new one.
        connection = gateway.pool.take(url, now) if self._request.stream is None else None
        if connection is not None:
            self._send(attempt, connection)
        else:
            self._connect(attempt)

    def _connect(self, attempt: Attempt) -> None:
        self._state = _CONNECTING
        target = attempt.target

        def done(found: UpstreamConnection | Exception) -> None:
            if self._state is not _CONNECTING or self._attempt is not attempt:
                if isinstance(found, UpstreamConnection):
                    self._gateway.pool.give(found, self._gateway.clock.now())
            elif isinstance(found, UpstreamConnection):
                self._send(attempt, found)
            elif says_nothing(found):
                self._close_attempt(_CLIENT_GONE)
                full = f"This router cannot make connections at the moment: {found}."
                self._refuse(errors.overloaded(full, "router_full"))
            else:
                why = str(found) or type(found).__name__
                failure = errors.bad_gateway(f"Worker {target.worker} cannot be reached: {why}.")
                self._failed(End.CONNECT_FAILED, failure)

        self._gateway.pool.connect(target.url, done)

    def _send(self, attempt: Attempt, connection: UpstreamConnection) -> None:
        self._state = _WAITING
        attempt.connection = connection
        connection.owner = self
        attempt.relay = self._relay = self.new_relay()
        if not self.write_request(connection, attempt.target):
            connection.owner = None
            self.upstream_lost(None)
            return
        hedges = self._gateway.hedges
        if hedges is not None and len(self._targets) == 1 and self._ask.streams and self._request.stream is None:
            self._rival = self._rival or hedges.arm(self, attempt.target, self._prompt.input_tokens)

    # --- WAITING and RELAYING: called by the connection ---

    def upstream_data(self, data: bytes) -> None:
        relay, attempt = self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        attempt.last_at = self._now()
        try:
            out = relay.feed(data)
        except FramingError as error:
            self._broke(End.ENGINE_ERROR, f"its response is not HTTP: {error}")
            return
        if self._state is _RELAYING:
            if out:
                self._client.write(out)
            self._note_tokens(attempt)
            if relay.phase is _ENDED:
                self._complete(relay)
            elif attempt.connection is not None:
                attempt.connection.passing = relay if relay.is_open else None
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
        attempt, relay = self._attempt, self._relay
        assert attempt is not None
        assert relay is not None
        connection, attempt.connection = attempt.connection, None
        relay.closed(error)
        if relay.phase is _ENDED:
            if self._state is _RELAYING:
                self._complete(relay)
            else:
                self._answered()
        elif connection is not None and connection.reused and not relay.begun and self._state is _WAITING:
            self._gateway.metrics.reconnects.add()
            self._connect(attempt)
        else:
            self._broke(End.RESET, f"the connection broke ({error})" if error else "the connection was closed early")

    def _answered(self) -> None:
        """Enough of a response is held to know whether it is one to pass on."""
        relay, attempt = self._relay, self._attempt
        assert relay is not None
        assert attempt is not None
        verdict = relay.verdict()
        if verdict.retryable and not self._stands(relay, attempt, verdict.end):
            return
        if relay.is_stream and verdict.end is _COMPLETE:
            self._first_token(attempt)
        if self._rival is not None:
            self._rival.cancel()
        self._state = _RELAYING
        request = self._request
        request.body = b""  # nobody else will get it
        if request.stream is not None:
            request.stream.forget()
        if self._prompt.chains:
            self._prompt = Prompt(self._prompt.kind, self._prompt.input_tokens)
        self._client.write(self._response_head(relay) + relay.release())
        relay.write, relay.to = self._client.write, self._client.transport  # though what is held ends amid a chunk
        if relay.phase is _ENDED:
            self._complete(relay)
        elif relay.is_open and attempt.connection is not None:
            attempt.connection.passing = relay

    def _stands(self, relay: Relay, attempt: Attempt, end: End) -> bool:
        """Whether a response that says that its engine failed is passed on all the same."""
        assert relay.head is not None
        if self._rival_goes_on(end):
            return False
        says_so = relay.head.status >= 400
        failure = errors.bad_gateway(f"Worker {attempt.target.worker} failed ({END_NAMES[end]}).")
        retry = self._may_retry()
        if not retry and (says_so or relay.error_event):
            return True
        # Without a retry: an abort without text, or a stream without an event, must not look like an answer.
        self._failed(end, failure, spare=relay if says_so and relay.phase is _ENDED else None, retry=retry)
        return False

    def _first_token(self, attempt: Attempt) -> None:
        gateway = self._gateway
        attempt.first_at = attempt.last_at
        self._note_tokens(attempt)
        ttft_s = attempt.first_at - attempt.sent_at
        gateway.metrics.ttft.observe(ttft_s)
        gateway.control.first_byte(attempt.target.decision_id, ttft_s)
        if gateway.hedges is not None:
            gateway.hedges.seen(attempt.target.url, ttft_s)

    def _note_tokens(self, attempt: Attempt) -> None:
        """As a connection does of the reads that it passes on by itself."""
        if self._gateway.pool.tokens.wanted and attempt.connection is not None:
            attempt.connection.steps.tokens_at = attempt.last_at

    def _complete(self, relay: Relay) -> None:
        assert relay.head is not None
        request = self._request
        if relay.cut_short and not relay.is_sized:
            cut = "The worker ended the stream without finishing it."
            self._client.write(headers.error_event(cut, relay, request.path, http10=request.http10))
        self._count(relay.head.status)
        self._close_attempt(relay.final())
        self._finish(close=self._closes or (relay.cut_short and self._must_close(relay)))

    # --- failure ---

    def _broke(self, end: End, why: str) -> None:
        """The attempt failed: elsewhere, or an end that cannot be mistaken for a good one."""
        message = f"Worker {self._attempt.target.worker if self._attempt is not None else '?'} failed: {why}."
        if self._state is _RELAYING:
            self._break_off(end, message)
        else:
            failure = errors.gateway_timeout(message) if end is End.TIMED_OUT else errors.bad_gateway(message)
            self._failed(end, failure)

    def _failed(self, end: End, failure: ApiError, *, spare: Relay | None = None, retry: bool | None = None) -> None:
        """Nothing was passed on. spare: an answer that tells of the failure in the engine's own words; retry: None: if it may
        be."""
        if self._rival_goes_on(end):
            return
        if retry is None:
            retry = self._may_retry()
        self._failure, self._spare = failure, spare
        self._close_attempt(end)
        if retry:
            self._gateway.metrics.retries.add(END_NAMES[end])
            self._ask_control()
        else:
            self._refuse(failure)

    def _may_retry(self) -> bool:
        """Takes a retry from the budget."""
        gateway, stream = self._gateway, self._request.stream
        if stream is not None and not stream.replayable:
            return False
        return len(self._targets) < gateway.settings.attempts_max and gateway.budget.take(gateway.clock.now())

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
        if self._attempt is not None and relay.moved():
            self._attempt.last_at = self._now()
        can_tell = relay.is_stream and relay.at_boundary
        self._count(relay.head.status)
        if can_tell:
            self._client.write(headers.error_event(message, relay, self._request.path, http10=self._request.http10))
        self._close_attempt(end)
        if can_tell:
            self._finish(close=self._closes or self._must_close(relay, broken=True))
        else:
            self._leave()
            self._client.cut(reset=self._ends_by_closing(relay))

    def _refuse(self, refusal: ApiError) -> None:
        self._finish(close=self._write_refusal(refusal))

    # --- a second attempt beside the first: see `hedge` ---

    def is_waiting(self) -> bool:
        return self._state is _WAITING

    def steered(self, answer: Answer) -> Answer:
        return ranks.steered(answer, self._request.path)

    def is_tried(self, answer: Answer) -> bool:
        if (answer.url, answer.rank) in [(target.url, target.rank) for target in self._failed_at()]:
            return True
        return answer.url in self._failed_urls()

    def _failed_urls(self) -> list[str]:
        """Less those of which one rank alone hangs: another rank of them will do."""
        stuck_ranks = self._gateway.fleet.stuck_ranks
        return [target.url for target in self._failed_at() if (target.url, target.rank) not in stuck_ranks]

    def _tried_urls(self) -> list[str]:
        return [target.url for target in self._failed_at()]

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
        attempt, self._rival = rival.take_over(), None
        self._attempt, self._relay = attempt, attempt.relay
        self._targets += (attempt.target,)
        self._state = _WAITING
        if attempt.connection is not None:
            attempt.connection.owner = self

    # --- the client's side ---

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
        if self._attempt is not None and self._attempt.connection is not None:
            self._attempt.connection.pause()

    def resume(self) -> None:
        if self._attempt is not None:
            self._attempt.last_at = self._gateway.clock.now()
            if self._attempt.connection is not None:
                self._attempt.connection.resume()

    def check(self, now: float) -> None:
        """Deadlines, asked about a few times a second."""
        settings, attempt = self._gateway.settings, self._attempt
        if settings.total_timeout_s and now - self._started_at > settings.total_timeout_s:
            self._out_of_time()
        elif attempt is None:
            return
        elif self._state is _WAITING and now - attempt.sent_at > settings.first_byte_timeout_s:
            self._broke(End.TIMED_OUT, f"no first token within {settings.first_byte_timeout_s:g} s")
        elif self._state is _WAITING:
            fleet = self._gateway.fleet
            if (fleet.stuck or fleet.stuck_ranks) and now - attempt.sent_at > settings.stuck_after_s:
                self._leave_stuck(attempt)
        elif self._state is _RELAYING:
            stalled_since = self._client.stalled_since
            if self._relay is not None and self._relay.moved():
                attempt.last_at = now
            if not stalled_since and now - attempt.last_at > settings.idle_timeout_s:
                self._broke(End.TIMED_OUT, f"silent for {settings.idle_timeout_s:g} s amid the response")
            elif stalled_since and now - stalled_since > settings.client_stall_s:
                self.client_gone()
                self._client.cut(reset=self._relay is not None and self._ends_by_closing(self._relay))

    def _leave_stuck(self, attempt: Attempt) -> None:
        """Nothing moves where it waits: elsewhere, if there is somewhere. Else waiting on is the better of two bad chances."""
        gateway, target = self._gateway, attempt.target
        fleet = gateway.fleet
        is_stuck = target.url in fleet.stuck or (target.url, target.rank) in fleet.stuck_ranks
        if not is_stuck or not gateway.control.connected:
            return
        if fleet.has_other(self._ask.model, self._failed_urls()) and self._may_retry():
            failure = errors.gateway_timeout(f"Worker {target.worker} failed: it hangs.")
            self._failed(End.TIMED_OUT, failure, retry=True)

    def _out_of_time(self) -> None:
        message = f"The request took longer than {self._gateway.settings.total_timeout_s:g} s."
        if self._state is _RELAYING:
            self._break_off(End.TIMED_OUT, message)
            return
        self._gateway.control.cancel(self._question_id)
        self._close_attempt(End.TIMED_OUT)
        self._refuse(errors.gateway_timeout(message))

    def shut_down(self) -> None:
        """The process ends before the request does, and its caller is told."""
        self._closes = True
        message = "The router is shutting down."
        if self._state is _RELAYING:
            self._break_off(_CLIENT_GONE, message)
            return
        self._gateway.control.cancel(self._question_id)
        self._close_attempt(_CLIENT_GONE)
        self._refuse(errors.overloaded(message, "shutting_down"))

    @property
    def is_silent(self) -> bool:
        """Nothing has been written to the client."""
        return self._state < _RELAYING

    # --- the ends ---

    def _close_attempt(self, end: End) -> None:
        """The attempt under way, if any, is over."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self.settle(attempt, end)

    def settle(self, attempt: Attempt, end: End) -> None:
        """Connection, counts and outcome of one attempt."""
        relay = attempt.relay
        reusable = relay is not None and end is not _CLIENT_GONE and relay.reusable
        attempt.settle(
            self._gateway,
            end,
            (self._request.stream is None or self._sent_whole()) and reusable,
            self._client.stalled_since > 0,
            self._request_name,
            self._ask.model,
            self._prompt.input_tokens,
        )

    def _leave(self) -> None:
        if self._state is _DONE:
            return
        self._state = _DONE
        gateway = self._gateway
        if self._rival is not None:
            self._rival.cancel()
        gateway.exchanges.discard(self)
        gateway.concurrency.leave()
        if self._request.stream is not None:
            self._request.stream.resume()  # nobody else has a reason to hold the client back
        if self._permit is not None:
            self._close_permit(self._permit)

    def _finish(self, *, close: bool) -> None:
        self._leave()
        self._client.finished(close=close)

    def held(self) -> pb.Held | None:
        """This exchange's reservation, as it is now."""
        return None if self._attempt is None else self.reservation(self._attempt)

    def reservation(self, attempt: Attempt) -> pb.Held | None:
        return attempt.reservation(self._prompt.input_tokens)

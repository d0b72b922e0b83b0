"""One call's answer on its way: tokens in, events or a whole body out. Pure: what is written goes through a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from emulator.calls import Call
from emulator.engine import NO_TOKEN
from emulator.errors import ApiError
from emulator.sequence import FinishReason
from emulator.sequence import Sequence as EngineSequence
from emulator.texts import StopFilter, json_string
from emulator.wire import DONE, Choice, Style, Totals

_EMPTY = b'""'

Write = Callable[[Sequence[bytes]], None]


class TokenTexts(Protocol):
    """Token ids as text."""

    def text(self, token: int) -> str: ...

    def json(self, token: int) -> bytes: ...


class Reply:
    """The answer to one call. Streams where `write` is given. `on_done` is called once, when nothing more will come."""

    def __init__(
        self,
        call: Call,
        style: Style,
        texts: TokenTexts,
        *,
        totals: Totals,
        num_choices: int,
        write: Write | None,
        on_done: Callable[[], None],
        named_events: bool = False,
    ) -> None:
        self.call = call
        self.totals = totals
        self.choices = [Choice(index) for index in range(num_choices)]
        self.failure: ApiError | None = None
        self.is_done = False
        self._style = style
        self._texts = texts
        self._write = write
        self._on_done = on_done
        self._named_events = named_events
        self._opened = False
        self._live = num_choices
        self._filters = [StopFilter(call.stop) for _ in range(num_choices)] if call.stop else None
        self._is_plain = not call.stop and not call.return_token_ids

    def echo(self, index: int, text: str) -> None:
        """The prompt, in front of the answer."""
        self.choices[index].parts.append(text)

    def deliver(self, index: int, token: int, finish: FinishReason | None) -> bool:
        """One token of one choice. True: a stop string ended the choice, the engine need not go on with it."""
        choice = self.choices[index]
        if choice.finish is not None:
            return False
        choice.num_tokens += 1
        self.totals.completion_tokens += 1
        if finish is None and self._is_plain and self._opened:
            choice.parts.append(self._texts.text(token))
            if self._write is not None:
                self._write((self._style.delta(choice, self._texts.json(token), self.totals),))
            return False
        return self._deliver_slowly(choice, token, finish)

    def _deliver_slowly(self, choice: Choice, token: int, finish: FinishReason | None) -> bool:
        events: list[bytes] = []
        if not self._opened:
            self._opened = True
            echoed = [choice.text for choice in self.choices]
            events += self._style.opening(self.choices, self.totals)
            events += [
                self._style.delta(choice, json_string(text), self.totals)
                for choice, text in zip(self.choices, echoed, strict=True)
                if text
            ]
        choice.token_ids.append(token)
        is_end = finish is FinishReason.STOP
        shown = "" if is_end or token == NO_TOKEN else self._texts.text(token)
        if is_end and token in self.call.stop_token_ids:
            choice.stop_reason = token
        stopped = False
        if self._filters is not None:
            shown, hit = self._filters[choice.index].feed(shown)
            if hit is not None:
                stopped = finish is None
                choice.stop_reason = hit
                finish = FinishReason.STOP
            elif finish is not None:
                shown += self._filters[choice.index].rest()
        if shown:
            choice.parts.append(shown)
        text = json_string(shown)
        if finish is None:
            if shown or self._is_plain:
                events.append(self._style.delta(choice, text, self.totals))
            self._send(events)
        else:
            self._end(choice, text, finish, events)
        return stopped

    def _end(self, choice: Choice, text: bytes, finish: FinishReason, events: list[bytes]) -> None:
        choice.finish = finish.value
        self._live -= 1
        event = self._style.last(choice, text, self.totals, is_final=self._live == 0)
        if event:
            events.append(event)
        if self._live == 0:
            self._send(events)
            self._send(self._style.closing(self.choices, self.totals))
            self._done()
        else:
            self._send(events)

    def abort(self) -> None:
        """The server is going down: every unfinished choice ends with the reason `abort`."""
        events: list[bytes] = []
        if not self._opened:
            self._opened = True
            events += self._style.opening(self.choices, self.totals)
        for choice in self.choices:
            if choice.finish is None:
                self._end(choice, _EMPTY, FinishReason.ABORT, events)
                events = []

    def fail(self, error: ApiError) -> None:
        """The engine died: an error event under status 200 for a stream, a status for the others."""
        if self.is_done:
            return
        self.failure = error
        self._send([error.event()] if self._named_events else [error.event(), DONE])
        self._done()

    def started(self, index: int, sequence: EngineSequence) -> None:
        """A sequence was scheduled for the first time: what it found in the cache is known."""
        if index % self.call.n == 0:
            self.totals.cached_tokens += sequence.num_cached
            self.totals.created_tokens -= sequence.num_cached

    def ended(self, index: int, sequence: EngineSequence) -> None:
        """vLLM's per-request figures, where there is only one sequence. Comes before its last token."""
        first, last, scheduled = sequence.first_token_s, sequence.last_token_s, sequence.scheduled_s
        if len(self.choices) > 1 or first is None or last is None or scheduled is None:
            return
        timings = {
            "time_to_first_token_ms": (first - scheduled) * 1e3,
            "generation_time_ms": (last - first) * 1e3,
            "queue_time_ms": (scheduled - sequence.arrived_s) * 1e3,
        }
        if sequence.num_output > 1:
            timings["mean_itl_ms"] = (last - first) * 1e3 / (sequence.num_output - 1)
        if last > scheduled:
            timings["tokens_per_second"] = sequence.num_output / (last - scheduled)
        self.totals.timings = timings

    def body(self) -> bytes:
        """The whole answer of a call that does not stream, once done."""
        return self._style.body(self.choices, self.totals)

    def _send(self, events: Sequence[bytes]) -> None:
        if self._write is not None and events:
            self._write(events)

    def _done(self) -> None:
        self.is_done = True
        self._on_done()

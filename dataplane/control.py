"""The line to the control plane that decides for this process: one stream of questions and decisions.

All questions of one event-loop tick leave in one message; while a message is being written, or questions are unanswered, the
next one gathers, within bounds. Outcomes and first bytes ride along with questions, or leave a moment later by themselves. A
question has a deadline, after which the fallback decides. When the stream breaks, or several questions in a row find no
answer, another control plane is asked what was left unanswered; where there is none every waiting question goes to the fallback
at once. Outcomes gather meanwhile up to a bound, and the next stream begins with what this process is relaying.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import grpc
import grpc.aio

from contract.frames import VERSION as LINE_VERSION
from contract.routing import VERSION as PACKED_VERSION
from contract.routing import Answer, Asked, Ended, Said, pack, unpack_answers
from dataplane import line, messages, rows
from dataplane.fallback import Fleet
from dataplane.line import Line
from dataplane.metrics import Metrics
from dataplane.planes import SILENT_S, Plane, Planes
from dataplane.rows import AskedRow, Chains, EndedRow, RequestRow
from dataplane.token_times import TokenTimes
from dataplane.watching import Credentials, Watching
from proto import routing_pb2 as pb
from runtime.clock import Clock
from runtime.tasks import happened, stop_if_cancelled, within

log = logging.getLogger(__name__)

MISSED_IN_A_ROW_MAX = 3
PROBE_EVERY_S = 0.5
TIMER_S_MIN = 0.001
OPEN_TIMEOUT_S = 2.0
"""For the first message of a stream to leave."""
CHANGE_S_MAX = 0.2
"""How long questions wait for the stream to another control plane before the fallback decides them."""
PATIENCE_SHARE = 0.6
"""Of its deadline, how long a question waits for any word of a control plane before another one is asked, if there is one."""
LINGER_S = 0.1
"""How long a stream that was left for a better one stays open, so that what was said on it is heard."""

FAULT_REST_S = 0.5
"""After a fault of our own, before everything about the control planes begins anew."""

HOLD_S_MAX = 0.001
"""How long questions gather while earlier ones are with the control plane: a message costs as much as ten questions in it."""
GATHERED_MAX = 32
"""Questions that leave at once, whatever is under way."""
REPORT_DELAY_S = 0.005
"""How long an outcome or a first byte waits for a question to ride along with."""

T = TypeVar("T")
Take = Callable[[Answer | None], None]

_Call = grpc.aio.StreamStreamCall[pb.RouteBatch, pb.DecisionBatch]
_Waiting = tuple[Take, float, Asked | AskedRow]


class ControlClient:
    """targets: control planes in order of preference; process: unique for this process and start; held: what is being relayed,
    for the first message of a stream; on_view: called after each fleet view that was taken."""

    def __init__(
        self,
        targets: Sequence[str],
        process: str,
        *,
        fleet: Fleet,
        tokens: TokenTimes,
        held: Callable[[], list[pb.Held]],
        on_view: Callable[[], None],
        metrics: Metrics,
        clock: Clock,
        decision_timeout_s: float,
        queue_timeout_s: float,
        outcomes_max: int,
        credentials: Credentials = lambda target: None,
    ) -> None:
        self.planes = Planes(targets, clock.now())
        self._watching = Watching(self.planes, process, credentials, on_view=self._on_plane, clock=clock)
        self._process = process
        self._fleet = fleet
        self._tokens = tokens
        self._held = held
        self._on_view = on_view
        self._metrics = metrics
        self._clock = clock
        self._timeout_s = decision_timeout_s
        self._patience_s = decision_timeout_s * (PATIENCE_SHARE if len(self.planes) > 1 else 1.0)
        self._queue_timeout_s = queue_timeout_s
        self.connected = False
        """Decisions come from a control plane, or will in a moment: it is being changed."""
        self.taken_at = 0.0
        """When the answers came that are being handed out."""
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}  # asked when, in that order
        self._queued: dict[int, _Waiting] = {}  # waiting for room since when, in that order
        self._timer: asyncio.TimerHandle | None = None
        self._missed_in_a_row = 0
        self._probe_at = 0.0
        self._questions: list[Asked | AskedRow] = []
        self._first_bytes: list[tuple[int, float]] = []
        self._cancels: list[int] = []
        self._outcomes: deque[Ended | EndedRow] = deque()
        self._outcomes_max = outcomes_max
        self._due = asyncio.Event()  # a message is to leave, by the writer
        self._leaving = False  # one leaves with this turn of the loop, without it
        self._packs = False  # the control plane of this stream has said that it reads packed messages
        self._line: Line | None = None  # of this stream, once everything asked on the stream itself is answered
        self._line_path = ""
        self._call: _Call | None = None  # of this stream
        self._silence = ""  # why it was given up, where nobody broke it
        self._leave_it = asyncio.Event()  # for an earlier control plane
        self._change_timer: asyncio.TimerHandle | None = None
        self._lingering: set[asyncio.Task[None]] = set()
        self._unanswered = 0  # questions sent on this stream
        self._hold_timer: asyncio.TimerHandle | None = None
        self._report_timer: asyncio.TimerHandle | None = None
        self._written = asyncio.Event()  # every outcome has left
        self._loop = asyncio.get_running_loop()

    def ask(self, asked: Asked, take: Take, now: float) -> int:
        """Exactly one call of `take`: the answer, or None where the fallback is to decide; 0 where it was called already.

        Returns the question's id, for `cancel`.
        """
        if not self.connected or (self._missed_in_a_row and self._silent(now)):
            take(None)
            return 0
        question_id = asked.question_id = next(self._ids)
        self._waiting[question_id] = (take, now, asked)
        self._questions.append(asked)
        self._gather()
        return question_id

    def ask_usual(self, wanted: RequestRow, chains: Chains, take: Take, now: float) -> int:
        """The same of a usual question, where `connected`."""
        if self._missed_in_a_row and self._silent(now):
            take(None)
            return 0
        question_id = next(self._ids)
        asked = (question_id, wanted, chains)
        self._waiting[question_id] = (take, now, asked)
        self._questions.append(asked)
        if not self._leaving or self._timer is None:
            self._gather()
        return question_id

    def _gather(self) -> None:
        """One more question is to be sent, and answered in time."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience_s, self._on_timer)
        if not self._unanswered or len(self._questions) >= GATHERED_MAX:
            self._send_soon()
        elif self._hold_timer is None:
            self._hold_timer = self._loop.call_later(HOLD_S_MAX, self._on_hold)

    def cancel(self, question_id: int) -> None:
        """The asker has gone: no answer is wanted, and what was reserved for it is released."""
        if (self._waiting.pop(question_id, None) or self._queued.pop(question_id, None)) is not None:
            self._withdraw(question_id)

    def release(self, answer: Answer) -> None:
        """A decision that is not followed."""
        self._send_cancel(answer.question_id)

    def first_byte(self, decision_id: int, ttft_s: float) -> None:
        if self.connected and decision_id:
            self._first_bytes.append((decision_id, ttft_s))
            self._report_soon()

    def report(self, ended: Ended | EndedRow) -> None:
        """Sent now or, up to the bound, when the control plane is back; the oldest go first."""
        if len(self._outcomes) >= self._outcomes_max:
            self._outcomes.popleft()
            self._metrics.outcomes_dropped.add()
        self._outcomes.append(ended)
        if self._report_timer is None:
            self._report_timer = self._loop.call_later(REPORT_DELAY_S, self._on_report)

    @property
    def outcomes_pending(self) -> int:
        return len(self._outcomes)

    @property
    def target(self) -> str:
        """Of the control plane that decides; "" where none does."""
        return self.planes.current.target if self.connected and self.planes.current is not None else ""

    def state(self) -> dict[str, object]:
        """What there is to tell where requests wait for decisions. Times are seconds."""
        now, current = self._clock.now(), self.planes.current
        oldest = next(iter(self._waiting.values()), None)
        return {
            "connected": self.connected,
            "target": "" if current is None else current.target,
            "view_age": None if current is None or current.view is None else round(now - current.heard_at, 2),
            "answers_age": round(now - self.taken_at, 2) if self.taken_at else None,
            "asked": len(self._waiting),
            "asked_for": 0.0 if oldest is None else round(now - oldest[1], 2),
            "queued": len(self._queued),
            "unsent": len(self._questions),
            "unanswered": self._unanswered,
            "missed_in_a_row": self._missed_in_a_row,
            "outcomes": len(self._outcomes),
            "line": "none" if self._line is None else "open" if self._line.has_room else "full or ended",
            "timer": self._timer is not None,
        }

    async def run(self) -> None:
        """Connects, and connects again, until cancelled."""
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watching.run())
                    group.create_task(self._decide())
            except* Exception:  # without it no request would be decided by a control plane any more
                log.exception("a fault on the way to the control plane")
            await asyncio.sleep(FAULT_REST_S)

    async def flush(self, timeout_s: float) -> None:
        """Until outcomes have left, or the time is over."""
        if self._outcomes and self.connected:
            self._written.clear()
            self._due.set()
            await happened(self._written, timeout_s)

    # --- the stream ---

    async def _decide(self) -> None:
        planes, heard = self.planes, self._watching.heard
        try:
            while True:
                stop_if_cancelled()
                heard.clear()
                now = self._clock.now()
                plane = planes.next(now)
                if plane is None:
                    self._give_up()
                    await happened(heard, planes.rest_s(now))
                    continue
                why = await self._stream(plane)
                now = self._clock.now()
                if why and (planes.failed(plane, now) or len(planes) > 1):
                    log.warning("control plane lost", extra={"f": {"for": "decisions", "target": plane.target, "why": why}})
                if planes.next(now) is None:
                    self._give_up()
                else:
                    self._ask_again(now)
        finally:
            self._give_up()
            for task in self._lingering:
                task.cancel()

    async def _stream(self, plane: Plane) -> str:
        """Until it breaks: why; or until it is left for an earlier one: ""."""
        call: _Call = self._watching.stub(plane).RouteStream()
        tasks: list[asyncio.Task[None]] = []
        opened: list[Line] = []
        left = False
        try:
            self._packs, self._line, self._line_path = False, None, line.path_of(plane.target)
            held = [*self._held(), *self._ended()]
            hello = pb.Hello(process=self._process, held=held, queue_notices=True, packed_version=PACKED_VERSION)
            hello.line_version = LINE_VERSION if self._line_path else 0
            async with within(OPEN_TIMEOUT_S):
                await call.write(pb.RouteBatch(hello=hello))
            self._begin(plane, call)
            writer = asyncio.create_task(self._write(call, opened))
            reader = asyncio.create_task(self._read(call, opened, tasks))
            leaving = asyncio.create_task(self._leave())
            tasks += (writer, reader, leaving)
            await asyncio.wait((reader, writer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and not reader.done():  # what is asked from now on would never leave
                call.cancel()
                await asyncio.wait((reader,))
                with suppress(grpc.aio.AioRpcError, ConnectionError, TimeoutError, asyncio.InvalidStateError):
                    writer.result()  # a fault of our own is for `run`
            if reader.done():
                reader.result()
                return self._silence or "ended by the control plane"
            writer.cancel()
            await asyncio.wait((writer,))
            await self._say_farewell(call)
            left = True
            return ""
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except (TimeoutError, ConnectionError):
            return f"{plane.target} takes nothing"
        except (ValueError, RecursionError) as error:  # msgspec's own, and of text that is no UTF-8
            return f"its packed message cannot be read: {error}"
        finally:
            self._call = self._line = None
            if left:
                for one in opened:
                    one.deafen()
                task = asyncio.create_task(_linger(call, opened, tasks))
                self._lingering.add(task)
                task.add_done_callback(self._lingering.discard)
            else:
                await _close(call, opened, tasks)

    def _begin(self, plane: Plane, call: _Call) -> None:
        """Its stream is open."""
        if self._change_timer is not None:
            self._change_timer.cancel()
            self._change_timer = None
        self.planes.taken(plane, self._clock.now())
        self.connected = True
        self._call, self._silence = call, ""
        self._leave_it.clear()
        self._missed_in_a_row = self._unanswered = 0
        log.info("control plane connected", extra={"f": {"target": plane.target}})
        self._show(plane)
        self._due.set()

    async def _read(self, call: _Call, opened: list[Line], tasks: list[asyncio.Task[None]]) -> None:
        while True:
            try:
                batch = await call.read()
            except asyncio.CancelledError:
                stop_if_cancelled()
                return  # the line has ended, or nothing came back
            if not isinstance(batch, pb.DecisionBatch):
                return
            if self._call is not call:
                continue  # it was left
            if batch.packed_version >= PACKED_VERSION:
                self._packs = True
                if batch.line_key and self._line_path:
                    tasks.append(asyncio.create_task(self._open_line(batch.line_key, call, opened)))
            self._take(unpack_answers(batch.packed) if batch.packed else list(map(messages.answer, batch.decisions)))

    # --- from one control plane to another ---

    async def _leave(self) -> None:
        await self._leave_it.wait()

    async def _say_farewell(self, call: _Call) -> None:
        """All that is known by now, and that nobody waits here for what was asked: it is asked again elsewhere."""
        unsent = {rows.asked(asked).question_id for asked in self._questions}
        self._cancels += [question_id for question_id in (*self._waiting, *self._queued) if question_id not in unsent]
        said = Said([], self._first_bytes, list(self._outcomes), self._cancels)  # type: ignore[arg-type]
        self._first_bytes, self._cancels = [], []
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._send(call, said)
        except (grpc.aio.AioRpcError, ConnectionError, TimeoutError, asyncio.InvalidStateError):
            return  # outcomes are claimed elsewhere, and told there
        self._outcomes.clear()

    def _ask_again(self, now: float) -> None:
        """What the former control plane left unanswered, for the next one; within a moment, or the fallback decides."""
        asked = [*self._waiting.items(), *self._queued.items()]
        self._waiting.clear()
        self._queued.clear()
        self._questions, self._first_bytes, self._cancels = [], [], []
        for question_id, (take, asked_at, question) in asked:
            if rows.asked(question).request.exclude:  # endpoints by the former one's numbers
                _tell_none(take)
            else:
                self._waiting[question_id] = (take, asked_at, question)
                self._questions.append(question)
        if self._change_timer is None:
            self._change_timer = self._loop.call_later(CHANGE_S_MAX, self._on_change_late)

    def _on_change_late(self) -> None:
        self._change_timer = None
        self._give_up()

    def _give_up(self) -> None:
        """Nobody decides but the fallback."""
        if self._change_timer is not None:
            self._change_timer.cancel()
            self._change_timer = None
        self.connected = False
        self._fleet.warm = False
        self._fail_all()

    def _on_plane(self, plane: Plane) -> None:
        """A view came from it."""
        planes, now = self.planes, self._clock.now()
        current = planes.current
        if plane is current or current is None or not self.connected:
            self._missed_in_a_row = 0
            self._show(plane)
        elif self._call is not None and planes.better(now) is not None:
            self._leave_it.set()
        elif self._call is not None and now - current.heard_at >= SILENT_S and planes.other(now) is not None:
            self._break_off("its views come no more")

    def _show(self, plane: Plane) -> None:
        if plane.view is None:
            return
        applied = self._fleet.apply(plane.view)
        self._tokens.wanted = self._fleet.wants_token_ages
        if applied:
            self._on_view()

    def _lose_patience(self, asked_at: float, now: float) -> None:
        """Where nothing at all came since that was asked, and another one is there in time to answer it."""
        current = self.planes.current
        if current is None or max(self.taken_at, current.taken_at) > asked_at or self.planes.other(now) is None:
            return
        self._break_off(f"no word for {(now - asked_at) * 1000:.0f} ms")

    def _break_off(self, why: str) -> None:
        """Nothing comes back on this stream, and there is somebody else."""
        call, self._call, self._silence = self._call, None, why
        if call is not None:
            call.cancel()

    def _ended(self) -> list[pb.Held]:
        """What ended while the control plane was away: claimed, so that its outcome finds a reservation to release."""
        return [
            pb.Held(decision_id=ended.decision_id, url=ended.url, input_tokens=ended.input_tokens, first_byte_seen=True)
            for ended in map(rows.ended, self._outcomes)
            if ended.decision_id
        ]

    async def _open_line(self, key: bytes, call: _Call, opened: list[Line]) -> None:
        """Where there is none, the stream goes on as it is. One that breaks ends its stream, and with it all that waits."""
        try:
            opened.append(await line.connect(self._line_path, key, self._on_line, call.cancel))
        except (OSError, TimeoutError) as error:
            log.info("no line to the control plane beside its stream", extra={"f": {"path": self._line_path, "why": error}})

    def _on_line(self, packed: bytes) -> None:
        self._take(unpack_answers(packed))

    async def _write(self, call: _Call, opened: list[Line]) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            if opened and not self._unanswered:  # else a cancel could overtake its question
                self._line = opened[0]
            said = self._gathered()
            try:
                await self._send(call, said)
            except BaseException:
                self._outcomes.extendleft(reversed(said.outcomes))
                raise
            if not self._outcomes:
                self._written.set()

    async def _send(self, call: _Call, said: Said) -> None:
        if self._line is not None:
            await self._line.send(self._made(pack, said))
        else:
            await call.write(self._made(_packed if self._packs else _unpacked, said))

    def _made(self, make: Callable[[Said], T], said: Said) -> T:
        """ConnectionError: nobody can say this. What was in it is lost, and the stream ends: the next one begins with what is
        still held."""
        try:
            return make(said)
        except (ValueError, TypeError, OverflowError) as error:
            log.exception("a message to the control plane cannot be made")
            said.outcomes.clear()
            self._break_off(f"a message cannot be made: {error}")
            raise ConnectionAbortedError from error

    def _send_soon(self) -> None:
        """With what else this turn of the loop brings. A line that has room takes it without the writer, whose wake-up costs as
        much as all else about a message."""
        if self._line is None or not self._line.has_room:
            self._due.set()
        elif not self._leaving:
            self._leaving = True
            self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._leaving = False
        if self._line is None or not self._line.has_room:
            self._due.set()
        elif self._questions or self._outcomes or self._first_bytes or self._cancels:
            with suppress(ConnectionError):
                self._line.write(self._made(pack, self._gathered()))
            self._written.set()

    def _gathered(self) -> Said:
        """All that is to be said, once."""
        self._unanswered += len(self._questions)
        ages = self._tokens.told(self._fleet.numbers) if self._questions and self._packs else []
        said = Said(self._questions, self._first_bytes, list(self._outcomes), self._cancels, ages)  # type: ignore[arg-type]
        self._questions, self._first_bytes, self._cancels = [], [], []
        self._outcomes.clear()
        return said

    def _report_soon(self) -> None:
        if self._report_timer is None:
            self._report_timer = self._loop.call_later(REPORT_DELAY_S, self._on_report)

    def _on_report(self) -> None:
        self._report_timer = None
        if self._outcomes or self._first_bytes:
            self._send_soon()

    def _on_hold(self) -> None:
        self._hold_timer = None
        if self._questions:
            self._send_soon()

    # --- answers ---

    def _take(self, answers: list[Answer]) -> None:
        now = self.taken_at = self._clock.now()
        self._missed_in_a_row = 0
        # Answers of questions that waited for room were counted with their notice: never below zero.
        self._unanswered = max(0, self._unanswered - len(answers))
        if self._questions and not self._unanswered:
            self._send_soon()
        observe, pop = self._metrics.decision.observe, self._waiting.pop
        for answer in answers:
            question_id = answer.question_id
            waiting = pop(question_id, None)
            if answer.queued:
                if waiting is not None:
                    self._queued[question_id] = (waiting[0], now, waiting[2])
                    self._look_within(self._queue_timeout_s)
                continue
            if waiting is None and self._queued:
                waiting = self._queued.pop(question_id, None)
            if waiting is not None:  # else it was cancelled, and the control plane has been told
                take, asked_at, _ = waiting
                observe(now - asked_at)
                try:
                    take(answer)
                except Exception:  # a fault in one asker must not end the stream of all
                    log.exception("an answer was not taken")

    def _silent(self, now: float) -> bool:
        """The control plane let several questions pass: only a probe now and then waits for it."""
        if self._missed_in_a_row < MISSED_IN_A_ROW_MAX:
            return False
        if now < self._probe_at:
            return True
        self._probe_at = now + PROBE_EVERY_S
        return False

    def _look_within(self, seconds: float) -> None:
        """For what may be due before what the timer was set for."""
        if self._timer is not None and self._timer.when() - self._loop.time() > seconds:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.now()
        oldest = next(iter(self._waiting.values()), None)
        if len(self.planes) > 1 and oldest is not None and oldest[1] <= now - self._patience_s:
            self._lose_patience(oldest[1], now)
        self._miss(self._waiting, now - self._timeout_s)
        self._miss(self._queued, now - self._queue_timeout_s)
        if (self._waiting or self._queued) and self._timer is None:
            oldest = next(iter(self._waiting.values()), None)
            asked_at = now if oldest is None else oldest[1]
            next_at = asked_at + (self._patience_s if now < asked_at + self._patience_s else self._timeout_s)
            queued = next(iter(self._queued.values()), None)
            if queued is not None:
                next_at = min(next_at, queued[1] + self._queue_timeout_s)
            self._timer = self._loop.call_later(max(TIMER_S_MIN, next_at - now), self._on_timer)

    def _miss(self, asked: dict[int, _Waiting], until: float) -> None:
        """No answer in time to what was asked by then: the fallback decides."""
        late = list(itertools.takewhile(lambda item: item[1][1] <= until, asked.items()))
        for question_id, (take, _, _) in late:
            if asked.pop(question_id, None) is not None:
                self._missed_in_a_row += 1
                self._metrics.late.add()
                self._withdraw(question_id)
                _tell_none(take)
        if self._missed_in_a_row >= MISSED_IN_A_ROW_MAX and self.planes.other(self._clock.now()) is not None:
            self._break_off(f"no answer to {self._missed_in_a_row} questions in a row")

    def _withdraw(self, question_id: int) -> None:
        """A question that has not left is taken back: in one message with its cancel it would be decided behind it."""
        for index, question in enumerate(self._questions):
            if rows.asked(question).question_id == question_id:
                del self._questions[index]
                return
        self._send_cancel(question_id)

    def _send_cancel(self, question_id: int) -> None:
        if self.connected:
            self._cancels.append(question_id)
            self._send_soon()

    def _fail_all(self) -> None:
        asked = [*self._waiting.values(), *self._queued.values()]
        self._waiting.clear()
        self._queued.clear()
        self._questions, self._first_bytes, self._cancels = [], [], []
        for take, _, _ in asked:
            _tell_none(take)


async def _linger(call: _Call, opened: list[Line], tasks: list[asyncio.Task[None]]) -> None:
    """It is closed when what was said has had its time, with the word that all of it is counted elsewhere."""
    try:
        await asyncio.sleep(LINGER_S)
        async with asyncio.timeout(LINGER_S):
            await call.write(pb.RouteBatch(moved=True))
            await call.done_writing()
            await asyncio.wait(tasks)
    except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
        log.debug("a stream that was left had ended")
    finally:
        await _close(call, opened, tasks)


async def _close(call: _Call, opened: list[Line], tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()  # of one that reads, the call with it
    await asyncio.gather(*tasks, return_exceptions=True)
    for one in opened:
        one.close()
    call.cancel()


def _packed(said: Said) -> pb.RouteBatch:
    return pb.RouteBatch(packed=pack(said))


def _unpacked(said: Said) -> pb.RouteBatch:
    return messages.batch(rows.said(said))


def _tell_none(take: Take) -> None:
    """A fault in one asker must not end the stream of all."""
    try:
        take(None)
    except Exception:
        log.exception("an answer was not taken")

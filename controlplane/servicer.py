"""The Routing service: a thin shell around the director.

The hot path is RouteStream, or the line that a process on this host opens beside it: one message in, everything in it handled
in one synchronous pass, one message out. Outcomes, first
bytes and cancels are handled before questions, so that what they free is free for them. Questions that wait for room are
answered later, in a message of their own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from hmac import compare_digest
from typing import Any

import grpc

from contract.frames import VERSION as LINE_VERSION
from contract.routing import VERSION as PACKED_VERSION
from contract.routing import Answer, Said, pack, unpack_said
from controlplane import packed, wire
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.fleet_view import FleetWatch
from controlplane.line import Line, Receive
from controlplane.question import Decision, Shed
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc
from runtime.clock import Clock

log = logging.getLogger(__name__)

LINE_KEY_BYTES = 16

Context = grpc.aio.ServicerContext[Any, Any]
Result = tuple[int, Decision | Shed | None]
"""question_id, and what became of it; None: it waits for room."""


class _Stream:
    """One data-plane process. Messages leave one at a time, in the order they were made."""

    __slots__ = ("_context", "_lock", "line", "line_key", "owner", "packed", "queue_notices")

    def __init__(self, hello: pb.Hello, context: Context) -> None:
        self.owner = hello.process
        self.queue_notices = hello.queue_notices
        self.packed = hello.packed_version >= PACKED_VERSION
        self._context = context
        self._lock = asyncio.Lock()
        self.line: Line | None = None
        self.line_key = b""
        if self.packed and hello.line_version >= LINE_VERSION and context.peer().startswith("unix:"):
            self.line_key = secrets.token_bytes(LINE_KEY_BYTES)

    async def greet(self) -> None:
        """Say that packed messages are read here, and what opens the line."""
        if self.packed:
            async with self._lock:
                await self._context.write(pb.DecisionBatch(packed_version=PACKED_VERSION, line_key=self.line_key))

    async def send(self, results: Sequence[Result], policy: str) -> None:
        """Answers of questions that had to wait."""
        if self.packed:
            await self.send_packed(_packed(results, policy))
        else:
            await self.send_plain(results, policy)

    async def send_packed(self, answers: bytes) -> None:
        """A packed list of answers."""
        if self.line is not None:
            self.line.send(answers)
            return
        async with self._lock:
            await self._context.write(pb.DecisionBatch(packed=answers))

    async def send_plain(self, results: Sequence[Result], policy: str) -> None:
        """For whoever does not read packed ones."""
        decisions = [
            pb.Decision(question_id=question_id, queued=True) if result is None else wire.decision(result, question_id, policy)
            for question_id, result in results
        ]
        async with self._lock:
            await self._context.write(pb.DecisionBatch(decisions=decisions))


def _packed(results: Sequence[Result], policy: str) -> bytes:
    return pack([packed.answer(result, question_id, policy) for question_id, result in results])


class RoutingServicer(routing_pb2_grpc.RoutingServicer):
    def __init__(self, director: Director, ring: DecisionRing, watch: FleetWatch, clock: Clock) -> None:
        self._director = director
        self._ring = ring
        self._watch = watch
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._sends: set[asyncio.Task[None]] = set()
        self.on_arrived: Callable[[str], None] | None = None
        """Told of each data plane that opened its stream, when what it claims is counted."""

    @property
    def streams(self) -> int:
        """Data planes connected."""
        return len(self._streams)

    def owners(self) -> Collection[str]:
        """Their names."""
        return self._streams.keys()

    def state(self) -> dict[str, str]:
        """By data plane: how it is talked to."""
        return {owner: "stream" if one.line is None else one.line.state for owner, one in self._streams.items()}

    # --------------------------------------------------------------------------------------------------- the stream

    async def RouteStream(  # type: ignore[override]  # noqa: N802 - reads and writes by itself: the stubs know generators only
        self, request_iterator: AsyncIterator[pb.RouteBatch], context: Context
    ) -> None:
        batch = await context.read()
        if batch is grpc.aio.EOF:
            return
        if not batch.hello.process:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream carries hello.process")
        stream = _Stream(batch.hello, context)
        self._streams[stream.owner] = stream
        self._director.arrived(stream.owner, wire.claims(batch.hello.held), self._clock.now())
        if self.on_arrived is not None:
            self.on_arrived(stream.owner)
        try:
            await stream.greet()
            while batch is not grpc.aio.EOF and self._streams.get(stream.owner) is stream:
                try:
                    said = wire.said(batch)
                except ValueError as error:
                    what = "packed" if batch.packed else "a message"
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{what} cannot be read: {error}")
                if stream.packed:
                    if answers := self._answer_packed(said, stream):
                        await stream.send_packed(answers)
                elif results := self._answer_plain(said, stream):
                    await stream.send_plain(results, self._director.policy)
                if batch.moved:
                    self._director.moved(stream.owner, self._clock.now())
                batch = await context.read()
        finally:
            if stream.line is not None:
                stream.line.close()
            if self._streams.get(stream.owner) is stream:
                del self._streams[stream.owner]
                self._director.departed(stream.owner, self._clock.now())

    def claim_line(self, key: bytes, line: Line) -> Receive | None:
        """Whose line this is: from here on its messages come and go there."""
        stream = next((one for one in self._streams.values() if one.line_key and compare_digest(one.line_key, key)), None)
        if stream is None or stream.line is not None:
            return None
        stream.line = line
        return partial(self._on_line, stream, line)

    def _on_line(self, stream: _Stream, line: Line, message: bytes) -> None:
        if self._streams.get(stream.owner) is not stream:
            line.close()
            return
        if answers := self._answer_packed(unpack_said(message), stream):
            line.send(answers)

    def _answer_packed(self, said: Said, stream: _Stream) -> bytes:
        """One message, synchronously, in order; every decision sees those before it. Empty: nothing was asked."""
        now = self._clock.now()
        self._hear(said, stream, now)
        if not said.questions:
            return b""
        answers = self._director.answer_all(said.questions, now, owner=stream.owner)
        self._cancel_asked(said, stream, now)
        if not stream.queue_notices:
            answers = [answer for answer in answers if not (isinstance(answer, Answer) and answer.queued)]
        return pack(answers) if answers else b""

    def _answer_plain(self, said: Said, stream: _Stream) -> list[Result]:
        """The same for messages of proto/routing.proto."""
        now = self._clock.now()
        self._hear(said, stream, now)
        questions = [(asked.question_id, packed.readable(asked)) for asked in said.questions]
        results = self._director.ask_all(questions, now, owner=stream.owner)
        self._cancel_asked(said, stream, now)
        return results if stream.queue_notices else [result for result in results if result[1] is not None]

    def _hear(self, said: Said, stream: _Stream, now: float) -> None:
        """All but the questions."""
        director = self._director
        if said.token_ages:
            director.tokens_came(said.token_ages, now)
        for decision_id, ttft_s in said.first_bytes:
            director.ends.first_byte(decision_id, ttft_s, now)
        director.ended_all(said.outcomes, now)
        for question_id in said.cancels:
            director.cancel(stream.owner, question_id, now)
        if said.outcomes or said.cancels:
            self.answer_waiting(now)

    def _cancel_asked(self, said: Said, stream: _Stream, now: float) -> None:
        """Once more: a cancel may belong to a question of this very message."""
        for question_id in said.cancels:
            self._director.cancel(stream.owner, question_id, now)

    def answer_settled(self) -> None:
        """Blocks were announced: what waited for them need not wait for the next look."""
        if len(self._director.settling):
            self.answer_waiting(self._clock.now())

    def answer_waiting(self, now: float) -> None:
        """Sends what the waiting room can answer now; called after every release and every few milliseconds."""
        by_owner: dict[str, list[Result]] = {}
        for answer in self._director.answers(now):
            by_owner.setdefault(answer.owner, []).append((answer.question_id, answer.result))
        for owner, results in by_owner.items():
            stream = self._streams.get(owner)
            if stream is not None and stream.line is not None:
                stream.line.send(_packed(results, self._director.policy))
            elif stream is not None:
                task = asyncio.create_task(_send_quietly(stream, results, self._director.policy))
                self._sends.add(task)
                task.add_done_callback(self._sends.discard)

    # ---------------------------------------------------------------------------------------------- people and tools

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.Decision:  # noqa: N802
        if not request.question.model:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "question.model is empty")
        try:
            question = packed.question(wire.asked(request.question))
        except ValueError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "chains.hashes is not a multiple of 8 bytes")
        result = self._director.decide(question, self._clock.now(), reserve=request.reserve)
        return wire.decision(result, request.question.question_id, self._director.policy)

    async def Report(self, request: pb.Outcome, context: Context) -> pb.ReportReply:  # noqa: N802
        now = self._clock.now()
        if request.decision_id == 0 and not request.url:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "neither decision_id nor url says which request ended")
        try:
            ended = wire.ended(request)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not self._director.ended(ended, now):
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no reservation {request.decision_id:016x}: ended, expired or never made"
            )
        self.answer_waiting(now)
        return pb.ReportReply()

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:  # noqa: N802
        trace = self._ring.get(request.decision_id)
        if trace is None:
            asked = f"decision {request.decision_id:016x}" if request.decision_id else "decision yet"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no {asked} among the last {len(self._ring)}")
        return wire.explanation(trace)

    async def WatchFleet(  # noqa: N802
        self, request: pb.WatchFleetRequest, context: Context
    ) -> AsyncIterator[pb.FleetView]:
        while True:
            yield self._watch.view(self._clock.now())
            await self._watch.change()


async def _send_quietly(stream: _Stream, results: Sequence[Result], policy: str) -> None:
    """A stream that broke meanwhile is noticed by its reader, who releases what these decisions reserved."""
    try:
        await stream.send(results, policy)
    except Exception as error:  # gRPC's own for a call that is over are not public
        log.debug("an answer found its stream closed: %s", error)

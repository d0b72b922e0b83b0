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
from collections.abc import AsyncIterator, Sequence
from functools import partial
from hmac import compare_digest
from typing import Any

import grpc

from contract.frames import VERSION as LINE_VERSION
from contract.routing import VERSION as PACKED_VERSION
from contract.routing import Answer, Asked, Said, pack, unpack_said
from controlplane import wire
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.fleet_view import FleetWatch
from controlplane.line import Line, Receive
from controlplane.question import Decision, Question, Shed
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

    __slots__ = ("_context", "_lock", "_packed", "line", "line_key", "owner", "queue_notices")

    def __init__(self, hello: pb.Hello, context: Context) -> None:
        self.owner = hello.process
        self.queue_notices = hello.queue_notices
        self._packed = hello.packed_version >= PACKED_VERSION
        self._context = context
        self._lock = asyncio.Lock()
        self.line: Line | None = None
        self.line_key = b""
        if self._packed and hello.line_version >= LINE_VERSION and context.peer().startswith("unix:"):
            self.line_key = secrets.token_bytes(LINE_KEY_BYTES)

    async def greet(self) -> None:
        """Say that packed messages are read here, and what opens the line."""
        if self._packed:
            async with self._lock:
                await self._context.write(pb.DecisionBatch(packed_version=PACKED_VERSION, line_key=self.line_key))

    async def send(self, results: Sequence[Result], policy: str) -> None:
        if self.line is not None:
            self.line.send(_packed(results, policy))
            return
        batch = pb.DecisionBatch(packed=_packed(results, policy)) if self._packed else _plain_batch(results, policy)
        async with self._lock:
            await self._context.write(batch)


def _packed(results: Sequence[Result], policy: str) -> bytes:
    answers = [
        Answer(question_id, queued=True) if result is None else wire.answer(result, question_id, policy)
        for question_id, result in results
    ]
    return pack(answers)


def _plain_batch(results: Sequence[Result], policy: str) -> pb.DecisionBatch:
    return pb.DecisionBatch(
        decisions=[
            pb.Decision(question_id=question_id, queued=True) if result is None else wire.decision(result, question_id, policy)
            for question_id, result in results
        ]
    )


class RoutingServicer(routing_pb2_grpc.RoutingServicer):
    def __init__(self, director: Director, ring: DecisionRing, watch: FleetWatch, clock: Clock) -> None:
        self._director = director
        self._ring = ring
        self._watch = watch
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def streams(self) -> int:
        """Data planes connected."""
        return len(self._streams)

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
        try:
            await stream.greet()
            while batch is not grpc.aio.EOF and self._streams.get(stream.owner) is stream:
                try:
                    said = wire.said(batch)
                except ValueError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"packed cannot be read: {error}")
                results = self._handle(said, stream)
                if results:
                    await stream.send(results, self._director.policy)
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

    def _on_line(self, stream: _Stream, line: Line, packed: bytes) -> None:
        if self._streams.get(stream.owner) is not stream:
            line.close()
            return
        results = self._handle(unpack_said(packed), stream)
        if results:
            line.send(_packed(results, self._director.policy))

    def _handle(self, said: Said, stream: _Stream) -> list[Result]:
        """One message, synchronously, in order; every decision sees those before it."""
        director, owner = self._director, stream.owner
        now = self._clock.now()
        for decision_id, ttft_s in said.first_bytes:
            director.first_byte(decision_id, ttft_s, now)
        for ended in said.outcomes:
            director.ended(ended, now)
        for question_id in said.cancels:
            director.cancel(owner, question_id, now)
        if said.outcomes or said.cancels:
            self.answer_waiting(now)
        if not said.questions:
            return []
        questions = [
            (asked.question_id, _readable(asked) if asked.chains else Question(asked.request)) for asked in said.questions
        ]
        answers = director.ask_all(questions, now, owner=owner)
        results = answers if stream.queue_notices else [answer for answer in answers if answer[1] is not None]
        for question_id in said.cancels:  # once more: it may belong to a question of this very message
            director.cancel(owner, question_id, now)
        return results

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
            question = wire.question(wire.asked(request.question))
        except ValueError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "chains.hashes is not a multiple of 8 bytes")
        result = self._director.decide(question, self._clock.now(), reserve=request.reserve)
        return wire.decision(result, request.question.question_id, self._director.policy)

    async def Report(self, request: pb.Outcome, context: Context) -> pb.ReportReply:  # noqa: N802
        now = self._clock.now()
        if request.decision_id == 0 and not request.url:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "neither decision_id nor url says which request ended")
        if not self._director.ended(wire.ended(request), now):
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


def _readable(asked: Asked) -> Question:
    """A chain that cannot be read matches nothing; the request itself may be served."""
    try:
        return wire.question(asked)
    except ValueError:
        return Question(asked.request)


async def _send_quietly(stream: _Stream, results: Sequence[Result], policy: str) -> None:
    """A stream that broke meanwhile is noticed by its reader, who releases what these decisions reserved."""
    try:
        await stream.send(results, policy)
    except Exception as error:  # gRPC's own for a call that is over are not public
        log.debug("an answer found its stream closed: %s", error)

"""The Routing service: a thin shell around the director.

The hot path is RouteStream: one message in, everything in it handled in one synchronous pass, one message out. Outcomes, first
bytes and cancels are handled before questions, so that what they free is free for them. Questions that wait for room are
answered later, in a message of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from contract.routing import VERSION as PACKED_VERSION
from contract.routing import Answer, Asked, Said, pack
from controlplane import wire
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.fleet_view import FleetWatch
from controlplane.question import Decision, Question, Shed
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc
from runtime.clock import Clock

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Result = tuple[int, Decision | Shed | None]
"""question_id, and what became of it; None: it waits for room."""


class _Stream:
    """One data-plane process. Messages leave one at a time, in the order they were made."""

    __slots__ = ("_context", "_lock", "_packed", "owner", "queue_notices")

    def __init__(self, hello: pb.Hello, context: Context) -> None:
        self.owner = hello.process
        self.queue_notices = hello.queue_notices
        self._packed = hello.packed_version >= PACKED_VERSION
        self._context = context
        self._lock = asyncio.Lock()

    async def greet(self) -> None:
        """Say that packed messages are read here."""
        if self._packed:
            async with self._lock:
                await self._context.write(pb.DecisionBatch(packed_version=PACKED_VERSION))

    async def send(self, results: Sequence[Result], policy: str) -> None:
        batch = _packed_batch(results, policy) if self._packed else _plain_batch(results, policy)
        async with self._lock:
            await self._context.write(batch)


def _packed_batch(results: Sequence[Result], policy: str) -> pb.DecisionBatch:
    answers = [
        Answer(question_id, queued=True) if result is None else wire.answer(result, question_id, policy)
        for question_id, result in results
    ]
    return pb.DecisionBatch(packed=pack(answers))


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
            if self._streams.get(stream.owner) is stream:
                del self._streams[stream.owner]
                self._director.departed(stream.owner, self._clock.now())

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
        questions = [(asked.question_id, _readable(asked)) for asked in said.questions]
        answers = director.ask_all(questions, now, owner=owner)
        results = [answer for answer in answers if answer[1] is not None or stream.queue_notices]
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
            if stream is not None:
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

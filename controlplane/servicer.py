"""The Routing service: a thin shell around the director.

The hot path is RouteStream: one message in, everything in it handled in one synchronous pass, one message out. Outcomes, first
bytes and cancels are handled before questions, so that what they free is free for them. Questions that wait for room are
answered later, in a message of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from controlplane import wire
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.fleet_view import FleetWatch
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc
from runtime.clock import Clock

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class _Stream:
    """One data-plane process. Messages leave one at a time, in the order they were made."""

    __slots__ = ("_context", "_lock", "owner", "queue_notices")

    def __init__(self, owner: str, queue_notices: bool, context: Context) -> None:
        self.owner = owner
        self.queue_notices = queue_notices
        self._context = context
        self._lock = asyncio.Lock()

    async def send(self, batch: pb.DecisionBatch) -> None:
        async with self._lock:
            await self._context.write(batch)


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
        stream = _Stream(batch.hello.process, batch.hello.queue_notices, context)
        self._streams[stream.owner] = stream
        self._director.arrived(stream.owner, wire.claims(batch.hello.held), self._clock.now())
        try:
            while batch is not grpc.aio.EOF and self._streams.get(stream.owner) is stream:
                decisions = self._handle(batch, stream)
                if decisions:
                    await stream.send(pb.DecisionBatch(decisions=decisions))
                batch = await context.read()
        finally:
            if self._streams.get(stream.owner) is stream:
                del self._streams[stream.owner]
                self._director.departed(stream.owner, self._clock.now())

    def _handle(self, batch: pb.RouteBatch, stream: _Stream) -> list[pb.Decision]:
        """One message, synchronously, in order; every decision sees those before it."""
        director = self._director
        now = self._clock.now()
        for first in batch.first_bytes:
            director.first_byte(first.decision_id, first.ttft_s, now)
        for outcome in batch.outcomes:
            director.ended(wire.ended(outcome), now)
        for cancel in batch.cancels:
            director.cancel(stream.owner, cancel.question_id, now)
        if batch.outcomes or batch.cancels:
            self.answer_waiting(now)
        decisions = []
        for asked in batch.questions:
            answer = self._answer(asked, stream, now)
            if answer is not None:
                decisions.append(answer)
        if batch.questions:
            for cancel in batch.cancels:  # once more: it may belong to a question of this very message
                director.cancel(stream.owner, cancel.question_id, now)
        return decisions

    def _answer(self, asked: pb.Question, stream: _Stream, now: float) -> pb.Decision | None:
        try:
            question = wire.question(asked)
        except ValueError:  # a chain that cannot be read matches nothing; the request itself may be served
            question = wire.question_without_chains(asked)
        result = self._director.ask(question, now, owner=stream.owner, question_id=asked.question_id)
        if result is not None:
            return wire.decision(result, asked.question_id, self._director.policy)
        return pb.Decision(question_id=asked.question_id, queued=True) if stream.queue_notices else None

    def answer_waiting(self, now: float) -> None:
        """Sends what the waiting room can answer now; called after every release and every few milliseconds."""
        batches: dict[str, list[pb.Decision]] = {}
        for answer in self._director.answers(now):
            sent = wire.decision(answer.result, answer.question_id, self._director.policy)
            batches.setdefault(answer.owner, []).append(sent)
        for owner, decisions in batches.items():
            stream = self._streams.get(owner)
            if stream is not None:
                task = asyncio.create_task(_send_quietly(stream, pb.DecisionBatch(decisions=decisions)))
                self._sends.add(task)
                task.add_done_callback(self._sends.discard)

    # ---------------------------------------------------------------------------------------------- people and tools

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.Decision:  # noqa: N802
        if not request.question.model:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "question.model is empty")
        try:
            question = wire.question(request.question)
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


async def _send_quietly(stream: _Stream, batch: pb.DecisionBatch) -> None:
    """A stream that broke meanwhile is noticed by its reader, who releases what these decisions reserved."""
    try:
        await stream.send(batch)
    except Exception as error:  # gRPC's own for a call that is over are not public
        log.debug("an answer found its stream closed: %s", error)

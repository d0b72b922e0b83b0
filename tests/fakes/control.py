"""A control plane of a few lines: the real gRPC service, decisions as the test says.

control = await Control.start(f"unix:{directory}/c.sock")
control.serve("m", "http://127.0.0.1:9001", "http://127.0.0.1:9002")
control.decide = lambda question: ...          # None: no answer at all
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from contract.frames import Frames, frame, line_path
from contract.routing import pack, unpack_said
from dataplane import messages
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc as rpc

WAIT_S = 10.0

Decide = Callable[[pb.Question], pb.Decision | None]


LINE_KEY = b"a key"


class LineEnd:
    """Writes to a line what would be written to a stream."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, batch: pb.DecisionBatch) -> None:
        self._writer.write(frame(batch.packed))
        await self._writer.drain()

    def close(self) -> None:
        self._writer.transport.abort()


class Control(rpc.RoutingServicer):
    """What came in is in the lists; `until` waits for it."""

    def __init__(self, first_id: int = 0x1000) -> None:
        self.questions: list[pb.Question] = []
        self.outcomes: list[pb.Outcome] = []
        self.first_bytes: list[pb.FirstByte] = []
        self.cancels: list[pb.Cancel] = []
        self.hellos: list[pb.Hello] = []
        self.batches: list[pb.RouteBatch] = []
        self.moved = 0  # data planes that said that they went to another one
        self.streams = 0  # open now
        self.view = pb.FleetView(version=1, warm=True, policy="scripted")
        self.decide: Decide = self.round_robin
        self.silent = False
        self.packs = True  # reads and sends packed messages; what came in is in the lists as messages all the same
        self.lines = False  # opens a line beside its Unix socket; set before `listen`
        self.on_lines = 0  # messages that came by one
        self._line_server: asyncio.AbstractServer | None = None
        self._line_ends: list[LineEnd] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._ids = itertools.count(first_id)
        self._turn = itertools.count()
        self._changed = asyncio.Condition()
        self._late: list[tuple[pb.Question, Any]] = []

    @classmethod
    async def start(cls, address: str) -> Control:
        control = cls()
        await control.listen(address)
        return control

    async def listen(self, address: str) -> None:
        self._server = grpc.aio.server()
        rpc.add_RoutingServicer_to_server(self, self._server)
        self._server.add_insecure_port(address)
        self.address = address
        await self._server.start()
        if self.lines:
            path = line_path(address.removeprefix("unix:"))
            self._line_server = await asyncio.start_unix_server(self._on_line, path)

    async def stop(self) -> None:
        """As a process that dies: streams break."""
        if self._line_server is not None:
            self._line_server.close()
        self.break_lines()
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def break_lines(self) -> None:
        for end in self._line_ends:
            end.close()
        self._line_ends.clear()

    def serve(self, model: str, *urls: str, tokenizer: str = "", block_size: int = 16, base: str = "") -> None:
        """The fleet from now on."""
        view = pb.FleetView(version=self.view.version + 1, warm=True, policy="scripted")
        view.models.add(name=model, base=base or model, tokenizer=tokenizer, block_sizes=[block_size], max_model_len=4096)
        for number, url in enumerate(urls, 1):
            view.endpoints.add(
                endpoint=number, worker=f"w{number}", url=url, models=[model], available=True, block_size=block_size
            )
        self.show(view)

    def show(self, view: pb.FleetView) -> None:
        """What data planes see from now on. view: of another version than the last one."""
        self.view = view
        self._notify_soon()

    def round_robin(self, question: pb.Question) -> pb.Decision | None:
        """In turn over the view, without those excluded; sheds where none is left."""
        serving = [endpoint for endpoint in self.view.endpoints if question.model in endpoint.models or not question.model]
        if not serving:
            return pb.Decision(shed=pb.Shed(reason=pb.Shed.UNKNOWN_MODEL))
        left = [endpoint for endpoint in serving if endpoint.endpoint not in question.exclude]
        if not left:
            return pb.Decision(shed=pb.Shed(reason=pb.Shed.EXCLUDED, message="every candidate was tried", retry_after_s=2))
        chosen = left[next(self._turn) % len(left)]
        return pb.Decision(
            decision_id=next(self._ids),
            endpoint=chosen.endpoint,
            url=chosen.url,
            worker=chosen.worker,
            policy="scripted",
            matched_tokens=32,
        )

    async def until(self, condition: Callable[[Control], bool]) -> None:
        """Waits until `condition` holds. TimeoutError after WAIT_S."""
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    def _notify_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._notify())
        self._task = task

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- the service ---

    async def RouteStream(self, request_iterator: AsyncIterator[pb.RouteBatch], context: Any) -> None:  # noqa: N802
        self.streams += 1
        try:
            await self._stream(request_iterator, context)
        finally:
            self.streams -= 1
            self._notify_soon()

    async def _stream(self, request_iterator: AsyncIterator[pb.RouteBatch], context: Any) -> None:
        async for batch in request_iterator:
            self.moved += batch.moved
            self.batches.append(batch)
            if batch.HasField("hello"):
                self.hellos.append(batch.hello)
                if self.packs:
                    key = LINE_KEY if self.lines and batch.hello.line_version else b""
                    await context.write(pb.DecisionBatch(packed_version=batch.hello.packed_version, line_key=key))
            elif self.packs and batch.packed:
                batch = messages.batch(unpack_said(batch.packed))
            await self._said(batch, context)

    async def _on_line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end, frames = LineEnd(writer), Frames()
        self._line_ends.append(end)
        known = False
        while data := await reader.read(65536):
            for body in frames.feed(data):
                if known:
                    self.on_lines += 1
                    await self._said(messages.batch(unpack_said(body)), end)
                known = known or body == LINE_KEY
                assert known, "a line begins with the key that its stream was given"

    async def _said(self, batch: pb.RouteBatch, context: Any) -> None:
        self.questions.extend(batch.questions)
        self.outcomes.extend(batch.outcomes)
        self.first_bytes.extend(batch.first_bytes)
        self.cancels.extend(batch.cancels)
        decisions = pb.DecisionBatch()
        for question in batch.questions:
            decision = self.decide(question)
            if decision is not None:
                decision.question_id = question.question_id
                decisions.decisions.append(decision)
            if decision is None or decision.queued:
                self._late.append((question, context))
        if decisions.decisions:
            await context.write(self._sent(decisions))
        await self._notify()

    async def answer_late(self) -> None:
        """Decides what was left without an answer."""
        late, self._late = self._late, []
        for question, context in late:
            decision = self.round_robin(question)
            assert decision is not None
            decision.question_id = question.question_id
            await context.write(self._sent(pb.DecisionBatch(decisions=[decision])))

    def _sent(self, batch: pb.DecisionBatch) -> pb.DecisionBatch:
        return pb.DecisionBatch(packed=pack(list(map(messages.answer, batch.decisions)))) if self.packs else batch

    async def WatchFleet(self, request: pb.WatchFleetRequest, context: Any) -> AsyncIterator[pb.FleetView]:  # noqa: N802
        sent = -1
        while True:
            if self.view.version != sent:
                sent = self.view.version
                yield self.view
            async with self._changed:
                await self._changed.wait()

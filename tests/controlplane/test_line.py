"""Lines, over real sockets: whose they are, what is said on them, what ends them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from contract.frames import FRAME_BYTES_MAX, VERSION, frame, line_path
from contract.outcome import End
from contract.routing import VERSION as PACKED
from contract.routing import Answer, Asked, Ended, Request, Said, pack, unpack_answers
from controlplane.line import Lines
from proto import routing_pb2 as pb
from tests.controlplane.parts import MODEL
from tests.controlplane.served import WAIT_S_MAX, Served, serve


class Caller:
    """A data plane with a stream and, once `open`, its line."""

    def __init__(self, served: Served, process: str = "dp-1") -> None:
        self._path = line_path(served.address.removeprefix("unix:"))
        self._process = process
        self.call = served.route.RouteStream()

    async def hello(self, *, line_version: int = VERSION) -> bytes:
        """The key of its line."""
        hello = pb.Hello(process=self._process, packed_version=PACKED, line_version=line_version, queue_notices=True)
        await self.call.write(pb.RouteBatch(hello=hello))
        greeting = await self.call.read()
        assert isinstance(greeting, pb.DecisionBatch)
        return greeting.line_key

    async def open(self, key: bytes) -> None:
        self.reader, self.writer = await asyncio.open_unix_connection(self._path)
        self.writer.write(frame(key))

    def say(self, said: Said) -> None:
        self.writer.write(frame(pack(said)))

    async def answers(self) -> list[Answer]:
        async with asyncio.timeout(WAIT_S_MAX):
            length = int.from_bytes(await self.reader.readexactly(4), "little")
            return unpack_answers(await self.reader.readexactly(length))

    async def ended(self) -> bool:
        async with asyncio.timeout(WAIT_S_MAX):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


@asynccontextmanager
async def with_lines(directory: Path, **settings: object) -> AsyncIterator[Served]:
    async with serve(directory, **settings) as served:
        before = os.listdir(directory)
        lines = Lines(served.routing.claim_line)
        await lines.start([served.address])
        yield served
        await lines.close()
        assert os.listdir(directory) == before, "its file is gone"


def question(number: int) -> Asked:
    return Asked(number, Request(model=MODEL, input_tokens=10))


async def test_questions_and_outcomes_by_the_line(short_dir: Path) -> None:
    async with with_lines(short_dir) as served:
        caller = Caller(served)
        await caller.open(await caller.hello())
        caller.say(Said([question(1), question(2)]))
        answers = await caller.answers()
        assert [answer.question_id for answer in answers] == [1, 2]
        assert len(served.plant.ledger) == 2
        caller.say(Said([question(3)], [], [Ended(decision_id=answer.decision_id, end=End.COMPLETE) for answer in answers]))
        (third,) = await caller.answers()
        assert [held.decision_id for held in served.plant.ledger] == [third.decision_id]
        caller.say(Said([question(4)], cancels=[3, 4]))
        await caller.answers()
        assert len(served.plant.ledger) == 0


async def test_what_waited_for_room_is_answered_by_the_line(short_dir: Path) -> None:
    async with with_lines(short_dir, workers=1, active_max=0) as served:
        caller = Caller(served)
        await caller.open(await caller.hello())
        caller.say(Said([question(1)]))
        (first,) = await caller.answers()
        caller.say(Said([question(2)]))
        (notice,) = await caller.answers()
        assert notice.queued
        caller.say(Said([], [], [Ended(decision_id=first.decision_id, end=End.COMPLETE)]))
        (second,) = await caller.answers()
        assert (second.question_id, bool(second.decision_id)) == (2, True)


async def test_the_end_of_the_stream_is_the_end_of_the_line(short_dir: Path) -> None:
    async with with_lines(short_dir) as served:
        caller = Caller(served)
        await caller.open(await caller.hello())
        caller.say(Said([question(1)]))
        await caller.answers()
        caller.call.cancel()
        assert await caller.ended()
        assert served.routing.streams == 0


async def test_a_key_opens_one_line_and_no_other_does(short_dir: Path) -> None:
    async with with_lines(short_dir) as served:
        caller, other = Caller(served), Caller(served, "dp-2")
        key = await caller.hello()
        await other.open(b"not the key")
        assert await other.ended()
        await caller.open(key)
        caller.say(Said([question(1)]))
        await caller.answers()
        await other.open(key)
        assert await other.ended()
        caller.say(Said([question(2)]))
        assert len(await caller.answers()) == 1


@pytest.mark.parametrize("bad", [frame(b"\xc1 no message"), (FRAME_BYTES_MAX + 1).to_bytes(4, "little")])
async def test_what_cannot_be_read_ends_the_line(short_dir: Path, bad: bytes) -> None:
    async with with_lines(short_dir) as served:
        caller = Caller(served)
        await caller.open(await caller.hello())
        caller.writer.write(bad)
        assert await caller.ended()


async def test_who_does_not_ask_for_a_line_is_given_no_key(short_dir: Path) -> None:
    async with with_lines(short_dir) as served:
        assert await Caller(served).hello(line_version=0) == b""


async def test_a_file_left_by_a_process_that_was_killed_is_replaced(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        os.close(os.open(line_path(served.address.removeprefix("unix:")), os.O_CREAT))
        lines = Lines(served.routing.claim_line)
        await lines.start([served.address, "127.0.0.1:0"])
        caller = Caller(served)
        await caller.open(await caller.hello())
        caller.say(Said([question(1)]))
        assert len(await caller.answers()) == 1
        await lines.close()

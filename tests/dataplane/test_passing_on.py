"""Streams whose events pass from the engine's socket to the client's without being shown, against the same reads fed to a
relay: what the client gets, and what is known in the end."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Iterable
from contextlib import ExitStack

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.relay import Phase
from dataplane.upstream import UpstreamConnection, UpstreamPool
from runtime.clock import ManualClock
from runtime.sockets import Sockets
from tests.dataplane.test_usual_streams import ENDS, EVENTS, STREAMS, USUAL_END, Owner, read
from tests.fakes.backend import STREAM_HEAD, chunk, delta, event
from tests.sockets import connected
from tests.waiting import until

pytestmark = pytest.mark.skipif(not Sockets().passes, reason="the installation found no C compiler")

PASSED = 20
"""More events than are kept."""


class Written(list[bytes]):
    """What is written leaves for the client."""

    def __init__(self, client: asyncio.Protocol) -> None:
        super().__init__()
        self.client = client

    def append(self, data: bytes) -> None:
        self.client.transport.write(data)  # type: ignore[attr-defined]

    def __iadd__(self, many: Iterable[bytes]) -> Written:  # type: ignore[override, misc]
        for data in many:
            self.append(data)
        return self


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


class Wired(Owner):
    """Between two sockets."""

    def __init__(self, sockets: Sockets, stack: ExitStack, short: bool, hold_bytes_max: int) -> None:
        super().__init__(short, hold_bytes_max, passes=True)
        pool = UpstreamPool(clock=ManualClock(), idle_s=1.0, connect_timeout_s=1.0, sockets=sockets)
        client = Client()
        self.engine, source = connected(stack)
        self.client, target = connected(stack)
        self.source = source.fileno()
        sockets.add(target, client)
        self.target = client.transport
        self.connection = UpstreamConnection(pool, "http://a:1")
        self.connection.owner = self
        sockets.add(source, self.connection)
        self.out = Written(client)
        self.unseen = 0

    def upstream_data(self, data: bytes) -> None:
        if self.relay.stream is not None:
            self.unseen += self.relay.stream.passed
        super().upstream_data(data)
        self.relay.to = self.target  # type: ignore[assignment]

    async def say(self, data: bytes) -> None:
        assert self.engine.send(data) == len(data)
        await until(lambda: not _pending(self.source), poll_s=0)

    def heard(self) -> bytes:
        found = b""
        while _pending(self.client.fileno()):
            found += self.client.recv(1 << 20)
        return found


def _pending(fd: int) -> int:
    """Bytes to be read there."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])


def read_wired(reads: list[bytes], *, short: bool, hold_bytes_max: int) -> tuple[bytes, object, int]:
    async def run() -> tuple[bytes, object, int]:
        sockets = Sockets()
        with ExitStack() as stack:
            wired = Wired(sockets, stack, short, hold_bytes_max)
            for data in reads:
                if data and wired.relay.phase is not Phase.ENDED:
                    await wired.say(data)
            wired.unseen += 0 if wired.relay.stream is None else wired.relay.stream.passed
            found = wired.heard(), wired.known, wired.unseen
            wired.connection.abort()
            wired.target.close()
        sockets.close()
        return found

    return uvloop.run(run())


@settings(max_examples=60, deadline=None)
@given(STREAMS, st.sampled_from(ENDS), st.booleans(), st.lists(st.integers(0, 4000), max_size=3), st.booleans())
def test_a_stream_that_passes_unseen_is_the_one_that_is_fed(
    bodies: list[bytes], end: bytes, ends_well: bool, cuts: list[int], short: bool
) -> None:
    chunks = [chunk(body) for body in (bodies + USUAL_END if ends_well else bodies) if body]
    reads = [STREAM_HEAD, *chunks, end]
    for cut in cuts:  # a read in two
        at = cut % len(reads)
        reads[at : at + 1] = [reads[at][: cut % (len(reads[at]) + 1)], reads[at][cut % (len(reads[at]) + 1) :]]
    fed, known, _ = read(reads, short=False, hold_bytes_max=1 << 20, passes=False)
    passed, known_too, _ = read_wired(reads, short=short, hold_bytes_max=1 << 20)
    assert (passed, known_too) == (fed, known)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("at", range(4, PASSED, 5))
def test_what_is_shown_amid_a_stream_keeps_its_place(short: bool, at: int) -> None:
    """Joined reads, a torn one, and an event with news, each with events that pass unseen before and behind it."""
    words = [chunk(event(delta(f"word {number}"))) for number in range(PASSED)]
    for news in (words[0] + words[1], chunk(EVENTS[5]), chunk(b": ping\n\n") + words[2]):
        reads = [STREAM_HEAD, *words[:at], news, *words[at:], words[0][:20], words[0][20:], *map(chunk, USUAL_END), ENDS[0]]
        fed, known, _ = read(reads, short=False, hold_bytes_max=1 << 20, passes=False)
        passed, known_too, unseen = read_wired(reads, short=short, hold_bytes_max=1 << 20)
        assert (passed, known_too) == (fed, known)
        assert unseen > 0

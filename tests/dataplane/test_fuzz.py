"""Any bytes: no crash, no hang, and the same answer whole or byte by byte. In memory, without sockets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.app import App
from dataplane.connection import ClientConnection
from dataplane.settings import Settings
from runtime.clock import ManualClock
from tests.dataplane.client import chat, request
from tests.dataplane.test_requests import BODY, HEAD, SMUGGLING


class MemoryTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        return None


async def _answer(pieces: list[bytes]) -> bytes:
    """What a proxy without workers says to these reads."""
    app = App(Settings(control="unix:/nowhere", body_bytes_max=2000, head_bytes_max=1000), ManualClock())
    connection, transport = ClientConnection(app.server), MemoryTransport()
    connection.connection_made(cast(Any, transport))
    for piece in pieces:
        connection.data_received(piece)
    connection.connection_lost(None)
    assert app.gateway.concurrency.in_flight == 0
    assert not app.gateway.exchanges
    return transport.written


STATUS_LINE = re.compile(rb"HTTP/1\.1 (?!100 )[0-9]{3} [^\r\n]+")
"""Of final responses; no body of ours holds one."""


def answers(pieces: list[bytes]) -> list[bytes]:
    """Statuses and codes; request ids are random, and parser messages name what was torn."""
    return STATUS_LINE.findall(uvloop.run(_answer(pieces)))


CAPTURES = [
    path.read_bytes()
    for path in sorted((Path(__file__).parents[1] / "fixtures/vllm/http").glob("*.req.raw"))
    if path.stat().st_size < 1500
]
"""What real clients sent to a real engine."""

MORE_SMUGGLING = [
    HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Content-Length: 2\n\n{}",
    HEAD + b"Content-Length: 2 2\r\n\r\n{}",
    HEAD + b"Content-Length : 2\r\n\r\n{}",
    HEAD + b"Content-Length:\r\n\r\n{}",
    HEAD + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2 ;x\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a=\n\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    HEAD + b"\nContent-Length: 2\r\n\r\n{}",
]

PARTS = st.sampled_from(
    [
        *SMUGGLING,
        *MORE_SMUGGLING,
        *CAPTURES,
        request(chat()),
        request(path="/health", method="GET"),
        request(path="/v1/models", method="GET", close=True),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{}}\r\n0\r\n\r\n",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
        HEAD,
        b"\r\n",
        b"0\r\n\r\n",
        b"Content-Length: 10\r\n\r\n",
        b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"X: " + b"y" * 1500,
    ]
)


@pytest.mark.parametrize("data", MORE_SMUGGLING)
def test_a_request_that_could_be_read_in_two_ways_gets_one_refusal(data: bytes) -> None:
    """Followed by a request of its own: what a second reader might find in its body is never answered."""
    for pieces in ([data + request(path="/health", method="GET")], [bytes([byte]) for byte in data]):
        found = answers(pieces)
        assert found == [b"HTTP/1.1 400 Bad Request"], found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(PARTS, st.binary(max_size=30)), min_size=1, max_size=5))
def test_whole_or_byte_by_byte_the_answers_are_the_same(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert answers([data]) == answers([data[index : index + 1] for index in range(len(data))])


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=3), st.data())
def test_mutated_requests_never_crash(parts: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(parts))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    answers([bytes(whole)])


def test_the_bytes_of_an_asyncio_loop_and_of_uvloop_get_the_same_answer() -> None:
    pieces = [request(chat())]
    assert b" 503 " in asyncio.run(_answer(pieces))
    assert b" 503 " in uvloop.run(_answer(pieces))


async def test_a_client_that_pipelines_and_does_not_read_gets_no_answers_piled_up() -> None:
    app = App(Settings(control="unix:/nowhere"), ManualClock(1.0))
    connection, transport = ClientConnection(app.server), MemoryTransport()
    connection.connection_made(cast(Any, transport))
    connection.pause_writing()
    connection.data_received(50 * request(path="/health", method="GET"))
    assert transport.written.count(b"HTTP/1.1 200") == 0
    connection.resume_writing()
    assert transport.written.count(b"HTTP/1.1 200") == 50
    connection.connection_lost(None)


async def test_while_draining_a_kept_connection_is_answered_once_more_and_told_to_close() -> None:
    app = App(Settings(control="unix:/nowhere"), ManualClock())
    connection, transport = ClientConnection(app.server), MemoryTransport()
    connection.connection_made(cast(Any, transport))
    connection.data_received(request(path="/health", method="GET"))
    assert b"connection: close" not in transport.written
    app.gateway.draining = True
    half = request(chat())
    connection.data_received(half[:50])
    connection.close_if_idle()
    assert not transport.closed  # it is in the middle of a request
    connection.data_received(half[50:])
    assert transport.written.count(b"HTTP/1.1 ") == 2
    assert b"connection: close" in transport.written
    assert transport.closed
    connection.connection_lost(None)

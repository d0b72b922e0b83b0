"""Requests read by the memory of heads, against the same ones read by the parser alone."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataplane.connection import ClientConnection
from dataplane.errors import ApiError
from dataplane.heads import HEADS_MAX, KnownHeads
from dataplane.http1 import Request, forward_head
from dataplane.server import Server
from dataplane.settings import Settings
from runtime.clock import ManualClock

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BODY = b'{"model": "m"}'


def whole(head: bytes = HEAD, body: bytes = BODY) -> bytes:
    return head % len(body) + body


class Transport:
    """Collects what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.closing = True

    def close(self) -> None:
        self.closing = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Listening:
    """What a connection wants of its server: every request is answered at once, and kept. learns: heads are remembered."""

    def __init__(self, *, learns: bool, **bounds: int) -> None:
        self.settings = Settings(body_bytes_max=4096)
        self.clock = ManualClock()
        self.extra_headers = ()
        self.connections: set[ClientConnection] = set()
        self.heads = KnownHeads(self.settings.body_bytes_max if learns else -1, **bounds)
        self.requests: list[Request] = []
        self.known = 0

    def handle(self, connection: ClientConnection, request: Request) -> None:
        self.requests.append(request)
        connection.write(b"answer")
        connection.finished(close=not request.keep_alive)

    def handle_known(self, connection: ClientConnection, request: Request) -> None:
        self.known += 1
        self.handle(connection, request)

    def rejected(self, connection: ClientConnection, request: Request, refusal: ApiError) -> None:
        """Said by the connection itself."""


def served(reads: list[bytes], *, learns: bool, **bounds: int) -> tuple[Listening, Transport, list[object]]:
    server, transport = Listening(learns=learns, **bounds), Transport()
    connection = ClientConnection(cast(Server, server))
    connection.connection_made(cast(asyncio.Transport, transport))
    for data in reads:
        connection.data_received(data)
    return server, transport, [meaning(request) for request in server.requests]


def meaning(request: Request) -> object:
    """All that is done with a request depends on."""
    sent = forward_head(request, host=b"h", ids=b"\r\nx-request-id: r")
    headers = [(name, value) for name, value in request.headers if name != b"content-length"]
    fields = {name: value for name, value in request.fields.items() if name != b"content-length"}
    return request.method, request.target, request.path, headers, fields, request.body, request.http10, request.keep_alive, sent


def agree(reads: list[bytes], **bounds: int) -> Listening:
    quick, told_quick, seen_quick = served(reads, learns=True, **bounds)
    _, told, seen = served(reads, learns=False)
    assert seen_quick == seen
    assert (told_quick.written, told_quick.closing) == (told.written, told.closing)
    return quick


def test_the_second_request_with_a_head_is_known_whatever_its_body() -> None:
    quick = agree([whole(), whole(body=b'{"model": "n", "x": 1}'), whole()])
    assert quick.known == 2


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: identity",
        b"Content-Length: 3",
        b"content-length:\t14",
        b"Connection: close",
        b"Connection: upgrade\r\nUpgrade: h2c",
        b"Expect: 100-continue",
        b"Content-Encoding: gzip",
        b"X-Request-Id: abc",
        b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
        b"x-headway-priority: 5",
        b"Host: b",
        b"a b: c",
        b" folded",
        b"x:\x00",
        b"x\n: y",
    ],
)
def test_what_is_out_of_the_ordinary_is_the_parsers(line: bytes) -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")
    quick = agree([whole(head), whole(head), whole(head)])
    assert quick.known == 0
    assert agree([whole(), whole(head), whole(), whole(head)]).known <= 1


@pytest.mark.parametrize(
    "length", [b"+14", b"014", b"0x0e", b"14 ", b"1_4", b"14, 14", b"99999999999999999999", b"-1", b"5000"]
)
def test_lengths_in_other_words_mean_what_the_parser_says(length: bytes) -> None:
    data = whole().replace(b": 14\r\n", b": " + length + b"\r\n")
    agree([whole(), data])
    agree([whole(), whole(), data + b" " * 100])


def test_a_body_beyond_the_limit_is_refused_behind_known_heads_too() -> None:
    quick = agree([whole(), whole(body=b'"' + b"x" * 5000 + b'"')])
    assert (len(quick.requests), quick.known) == (1, 0)


def test_two_requests_in_one_read_are_two() -> None:
    assert len(agree([whole(), whole() + whole(), whole()]).requests) == 4


_PIECES = [
    whole(),
    whole(body=b"{}"),
    HEAD % 14,
    BODY,
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    whole(HEAD.replace(b"1.1", b"1.0")),
    whole(HEAD.replace(b"Host: a\r\n", b"")),
    whole(HEAD.replace(b"\r\n", b"\n")),
    whole(HEAD.replace(b"application/json", b"text/plain")),
    b"\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(_PIECES),
            st.builds(
                lambda data, at, piece, cut: data[:at] + piece + data[at + cut :],
                st.sampled_from(_PIECES),
                st.integers(0, 160),
                st.sampled_from([b"", b"\r\n", b"\n", b" ", b":", b"0", b"Content-Length: 2\r\n", b"x", b"\x00"]),
                st.integers(0, 3),
            ),
        ),
        max_size=6,
    )
)
@example([whole(), whole() + b"G"])
def test_both_ways_of_reading_agree_on_whatever_comes(reads: list[bytes]) -> None:
    agree([whole(), *reads])


def test_memory_is_bounded() -> None:
    heads = KnownHeads(4096)
    for number in range(HEADS_MAX + 10):
        request = Request("POST", b"/v1/x", "/v1/x", body=b"{}")
        request.add_header(b"content-type", b"application/json")
        heads.learn(b"POST /v1/x%d HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}" % number, request)
    assert 0 < len(heads) <= HEADS_MAX


def test_a_heads_memory_is_not_changed_by_what_is_done_with_a_request() -> None:
    server, _, _ = served([whole(), whole(), whole()], learns=True)
    first, second = server.requests[1:]
    first.body = b""
    assert second.body == BODY
    cast(Any, second).target = b"/other"
    assert first.target == b"/v1/chat/completions"


def test_the_sizes_of_known_heads_are_bounded_all_together() -> None:
    bodies = [b'"%b"' % (b"x" * number) for number in range(60)]
    quick = agree([whole(body=body) for body in [*bodies, *reversed(bodies)]], sizes_max=8)
    assert quick.known > 60
    assert sum(len(known.sized) for known in quick.heads._known.values()) <= 8

"""Events onto a connection: one SSE event a chunk, headers at once, and the ways in which a stream can go wrong.

Events are framed here and written to the transport directly: two thousand of them a second leave no room for a coroutine
each. What a slow reader leaves in the transport's buffer is bounded by the answer's length, as in the server that is
imitated.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence

from aiohttp import web

from emulator.faults import Fault

_RESET = struct.pack("ii", 1, 0)


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Close with RST."""
    if not isinstance(transport, asyncio.Transport):
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class EventWriter:
    """Writes events of one stream. fault: reset_mid_stream, truncate or silent, if this stream has one."""

    def __init__(self, http: web.Request, fault: Fault | None, on_cut: Callable[[], None]) -> None:
        self._transport = http.transport
        self._is_chunked = http.version >= (1, 1)
        self._fault = fault
        self._left = fault.after_events if fault is not None else -1
        self._on_cut = on_cut
        self.is_cut = False

    @property
    def is_silent(self) -> bool:
        return self._fault is not None and self._fault.kind == "silent"

    def __call__(self, events: Sequence[bytes]) -> None:
        transport = self._transport
        if self.is_cut or transport is None or transport.is_closing():
            return
        if self._fault is not None:
            self._write_faulty(events)
            return
        if self._is_chunked:
            transport.write(b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events]))
        else:
            transport.write(b"".join(events))

    def _write_faulty(self, events: Sequence[bytes]) -> None:
        fault = self._fault
        assert fault is not None
        if fault.kind == "silent":
            return
        allowed, self._left = events[: self._left], self._left - len(events)
        self._fault = None
        if allowed:
            self(allowed)
        self._fault = fault
        if self._left < 0:
            self.is_cut = True
            if fault.kind == "reset_mid_stream":
                reset(self._transport)
            elif not fault.clean and self._transport is not None:
                self._transport.close()
            self._on_cut()


async def open_stream(http: web.Request) -> web.StreamResponse:
    """Status and headers, now."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    if http.version >= (1, 1):
        response.enable_chunked_encoding()
    else:
        response.force_close()
    await response.prepare(http)
    return response

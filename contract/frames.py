"""A line: what a RouteStream says, packed, between two processes of one host without gRPC in between.

A Unix socket beside the control plane's own (`line_path`). Each frame is its length and its bytes; the first one of a data
plane is the key that it was given on its RouteStream, every other holds one `Said`, those the other way a list of `Answer`
(contract.routing). The RouteStream stays open: it says who is there, and where either ends the other ends with it. A message by
gRPC, with its threads and wake-ups, costs both sides 200 us of CPU where few questions share one.
"""

from __future__ import annotations

from struct import Struct

VERSION = 1
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""As long as a message of a RouteStream may be."""

_LENGTH = Struct("<I")
_HEAD = _LENGTH.size


def line_path(socket_path: str) -> str:
    """Of the control plane that listens on this Unix socket, as whoever asks sees its path."""
    return socket_path + ".line"


def frame(body: bytes) -> bytes:
    """As it is sent."""
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Bytes as they come to whole frames. Pure."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are whole by now, in order. ValueError: a frame longer than FRAME_BYTES_MAX."""
        if self._buffer:
            data = self._buffer + data
        bodies: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= _HEAD:
            length = _LENGTH.unpack_from(data, at)[0]
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes, {FRAME_BYTES_MAX} at most")
            after = at + _HEAD + length
            if after > end:
                break
            bodies.append(data[at + _HEAD : after])
            at = after
        self._buffer = data[at:] if at < end else b""
        return bodies

"""A request body that is passed on while it still comes, without I/O: uploads that routing reads only the beginning of.

The beginning is kept, up to a bound, so that the request can go elsewhere while nothing else has left; once more than that has
come the body has one reader, and no retry. While no engine takes it, or takes it slower than it comes, the client is not read.
"""

from __future__ import annotations

from collections.abc import Callable

KEPT_BYTES_MAX = 1024 * 1024
_LAST_CHUNK = b"0\r\n\r\n"


class BodyStream:
    """length: as the client declared it, -1: chunked; pause, resume: of reading from the client."""

    __slots__ = (
        "_kept",
        "_kept_bytes",
        "_pause_reading",
        "_paused",
        "_resume_reading",
        "_write",
        "ended",
        "length",
        "replayable",
    )

    def __init__(self, length: int, *, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        self.length = length
        self.ended = False
        self.replayable = True  # everything that came is still here
        self._pause_reading = pause
        self._resume_reading = resume
        self._paused = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._write: Callable[[bytes], None] | None = None

    def feed(self, data: bytes) -> None:
        """More of it came."""
        if self._write is not None:
            self._write(self._framed(data))
            if self.replayable and self._kept_bytes + len(data) > KEPT_BYTES_MAX:
                self.forget()
        if self.replayable:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._write is None and self._kept_bytes >= KEPT_BYTES_MAX:
                self.pause()

    def end(self) -> None:
        """All of it came."""
        self.ended = True
        if self._write is not None and self.length < 0:
            self._write(_LAST_CHUNK)

    def attach(self, write: Callable[[bytes], None]) -> None:
        """An engine takes it from the beginning."""
        assert self.replayable, "the beginning of the body is gone"
        self._write = write
        self.resume()
        for part in self._kept:
            write(self._framed(part))
        if self.ended and self.length < 0:
            write(_LAST_CHUNK)

    def detach(self) -> None:
        """That engine takes no more."""
        self._write = None

    def forget(self) -> None:
        """Nobody else will get it."""
        self.replayable = False
        self._kept.clear()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._pause_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._resume_reading()

    def _framed(self, data: bytes) -> bytes:
        return data if self.length >= 0 else b"%x\r\n%b\r\n" % (len(data), data)

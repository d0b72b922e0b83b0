"""The compiled part of plain sockets (`_passing.c`), where an installation found a compiler; a read and a write without it."""

from __future__ import annotations

import os

__all__ = ["READ_BYTES", "compiled", "receive", "send"]

READ_BYTES = 64 * 1024

_VERSION = 3
"""Of the compiled part; one that was built from other sources is left alone."""
try:
    from runtime import _passing as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]
else:
    if getattr(compiled, "VERSION", 0) != _VERSION:
        compiled = None  # type: ignore[assignment]


def _receive(fd: int) -> bytes | None:
    """One read; b"": the end, None: nothing there. OSError."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None


def _send(fd: int, data: bytes | bytearray | memoryview) -> int:
    """How many bytes were taken. OSError."""
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0


receive = _receive if compiled is None else compiled.receive
send = _send if compiled is None else compiled.send

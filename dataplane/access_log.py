"""One JSON line a request that was answered, for operators: to a file or to stdout, off unless asked for.

Requests never wait for it: lines are written ten times a second by a thread of its own, and where whatever takes them does not,
they are dropped and counted beyond a bound. A file is opened anew once it was renamed or removed, as log rotation does it.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

import msgspec

log = logging.getLogger(__name__)

STDOUT = "-"
FLUSH_S = 0.1
LINES_MAX = 20_000
"""That wait to be written; some 8 MB."""
CLOSE_S = 1.0
"""How long the end of a process waits for the last lines."""
PATH_CHARS_MAX = 512
WRITE_BYTES_MAX = select.PIPE_BUF
"""At once, in whole lines: what several processes write to one pipe stays apart up to here."""

_MILLISECONDS = [f".{number:03d}Z" for number in range(1000)]


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """One request. What is not known, or does not apply, is left out. Neither prompts nor keys are in it.

    time: when its answer was complete; status: 499 where the caller left first; end: of contract.outcome.End in lower case, of
    the attempt that was the answer, or refused, answered (here, without a worker) or client_gone (before an attempt); error:
    code of the error object that the caller got from here. Times from the whole request's arrival here, in seconds; ttft_s of
    streams. Tokens as the engine says it; matched_tokens: what was predicted to be in the worker's cache.
    """

    time: str
    request_id: str
    client: str
    method: str
    path: str  # without its query
    status: int
    end: str
    duration_s: float
    tenant: str = ""
    error: str = ""
    model: str = ""
    stream: bool = False
    worker: str = ""
    rank: int = -1
    policy: str = ""
    decision: str = ""
    attempts: int = 0
    prompt_tokens: int = -1
    matched_tokens: int = -1
    cached_tokens: int = -1
    output_tokens: int = -1
    ttft_s: float = -1.0


def microseconds(seconds: float) -> float:
    """Seconds to the microsecond; `round` takes ten times as long, as it promises more."""
    return int(seconds * 1e6 + 0.5) / 1e6


class AccessLog:
    """Where lines go. target: a path, or STDOUT; unix: seconds since 1970.

    ValueError: it cannot be written.
    """

    def __init__(self, target: str, unix: Callable[[], float]) -> None:
        self.dropped = 0
        """Lines that nobody will read: too many waited, or they could not be written."""
        self._path = "" if target == STDOUT else target
        self._unix = unix
        self._encode = msgspec.json.Encoder().encode
        self._waiting: deque[bytes] = deque()
        self._second = -1
        self._stamp = ""
        self._failing = self._torn = False
        self._ending = threading.Event()
        self._fd = os.dup(1) if not self._path else -1
        if self._path:
            try:
                self._open()
            except OSError as error:
                raise ValueError(f"--access-log: cannot write {target}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What waits is written, within CLOSE_S."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive() and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def now(self) -> str:
        """In UTC, to the millisecond, as RFC 3339 writes it."""
        unix = self._unix()
        second = int(unix)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._stamp + _MILLISECONDS[int((unix - second) * 1000)]

    def add(self, line: Line) -> None:
        if len(self._waiting) >= LINES_MAX:
            self.dropped += 1
        else:
            self._waiting.append(self._encode(line) + b"\n")

    # --- in the thread ---

    def _run(self) -> None:
        while not self._ending.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            self._open()
            while self._waiting:
                self._write(self._take())
        except OSError as error:
            if not self._failing:
                log.error("the access log cannot be written", extra={"f": {"why": error.strerror}})
            self._failing = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
        else:
            if self._failing:
                log.info("the access log is written again", extra={"f": {"dropped": self.dropped}})
            self._failing = False

    def _take(self) -> list[bytes]:
        """As many of the lines that wait as are written at once, one at least."""
        waiting = self._waiting
        lines = [waiting.popleft()]
        size = len(lines[0])
        while waiting and size + len(waiting[0]) <= WRITE_BYTES_MAX:
            size += len(waiting[0])
            lines.append(waiting.popleft())
        return lines

    def _write(self, lines: list[bytes]) -> None:
        """OSError: not, or not all of it."""
        data = b"".join(lines)
        if self._torn:  # a line's beginning is there: what follows is a line of its own
            data = b"\n" + data
        try:
            while data:
                data = data[os.write(self._fd, data) :]
                self._torn = bool(data)
        except OSError:
            self.dropped += len(lines)
            raise

    def _open(self) -> None:
        """The file at the path, which may be another one than the last. OSError."""
        if not self._path or (self._fd >= 0 and _is_at(self._fd, self._path)):
            return
        opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = opened


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev) or not stat.S_ISREG(there.st_mode)

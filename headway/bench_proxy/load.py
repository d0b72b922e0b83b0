"""load.c for machines without a compiler: `python -m headway.bench_proxy.load PORT CONNECTIONS SECONDS RATE FILE`."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path
from time import monotonic
from typing import cast

import uvloop

LATE_S = 10.0
"""How long responses may still come after the end."""


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._due = 0.0
        self._size = -2  # -2: head not read; -1: chunked
        self._data = b""
        self._timed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._load.idle.append(self)

    def ask(self, request: bytes, due: float) -> None:
        self._due, self._size, self._data, self._timed = due, -2, b"", False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._size == -2:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            _, found, length = head.lower().partition(b"content-length:")
            self._size = int(length.split(b"\r\n")[0]) if found else -1
            self._load.errors += head[9:12] != b"200"
            self._data = rest
        if self._data and not self._timed:
            self._timed = True
            self._load.first_s.append(monotonic() - self._due)
        if len(self._data) >= self._size >= 0 or (self._size < 0 and self._data.endswith(b"0\r\n\r\n")):
            self._load.done(self)
        elif self._size < 0:
            self._data = self._data[-5:]

    def connection_lost(self, error: Exception | None) -> None:
        self._load.errors += 1


class Load:
    """rate 0: closed loop."""

    def __init__(self, requests: list[bytes], rate: float, seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.idle: deque[Client] = deque()
        self.errors = self.answered = self.sent = 0
        self.first_s: list[float] = []
        self._requests = requests
        self._rate = rate
        self._began = monotonic()
        self._until = self._began + seconds
        self.over = asyncio.Event()
        self._busy = 0

    def done(self, client: Client) -> None:
        self.answered += 1
        self._busy -= 1
        self.idle.append(client)
        self.send()

    def send(self) -> None:
        """Whatever is due and finds an idle connection."""
        now = monotonic()
        while self.idle and now < self._until:
            due = self._began + self.sent / self._rate if self._rate else now
            if due > now:
                break
            self._busy += 1
            self.idle.popleft().ask(self._requests[self.sent % len(self._requests)], due)
            self.sent += 1
        if now >= self._until and not self._busy:
            self.over.set()

    async def run(self) -> None:
        while not self.over.is_set() and monotonic() < self._until + LATE_S:
            self.send()
            await asyncio.sleep(0.001)  # the clock of the open loop

    def report(self) -> str:
        times = sorted(self.first_s) or [0.0]
        figures = (times[len(times) // 2], times[len(times) * 99 // 100], sum(times) / len(times))
        seconds = monotonic() - self._began
        return f"{self.answered} {self.errors + self._busy} {seconds} " + " ".join(str(1e6 * value) for value in figures)


def read_requests(path: Path) -> list[bytes]:
    """Decimal length, newline, request; again and again."""
    data, requests, at = path.read_bytes(), [], 0
    while at < len(data):
        start = data.index(b"\n", at) + 1
        at = start + int(data[at : start - 1])
        requests.append(data[start:at])
    return requests


async def main(port: int, connections: int, seconds: float, rate: float, path: Path) -> None:
    """Prints one line, as load.c does."""
    load = Load(read_requests(path), rate, seconds)
    for _ in range(connections):
        await load.loop.create_connection(lambda: Client(load), "127.0.0.1", port)
    await load.run()
    print(load.report())


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5])))

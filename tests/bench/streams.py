"""Thousands of streams at once through one data-plane process: every byte compared, memory per stream.

Method: one scripted engine (a raw protocol in a process of its own), a scripted control plane over gRPC, one data-plane
process, and this process as all clients, each stream on a connection of its own. The engine sends every stream its first
event and holds it there until all streams have begun, so that all are open at once; then it sends the others, round after
round. What a stream carries depends on its own number; a client compares all of its body. Memory is the growth of the
data plane's resident set from before the first stream to when all are open, by the number of streams; the kernel's socket
buffers are not part of it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.ports import free_ports

STREAMS = 4000
EVENTS = 40
WAIT_S_MAX = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SHARED = """
def event(number, index):
    return b'data: {"choices":[{"index":0,"delta":{"content":"%d.%d "},"finish_reason":%b}]}\\n\\n' % (
        number, index, b'"stop"' if index == EVENTS - 1 else b'null')
def chunk(data):
    return b"%x\\r\\n%b\\r\\n" % (len(data), data)
"""

ENGINE = (
    """
import asyncio, re, sys, uvloop
STREAMS, EVENTS = int(sys.argv[2]), int(sys.argv[3])
"""
    + SHARED
    + """
HEAD = b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n"
waiting = {}
async def rest():
    streams, index = dict(waiting), 1
    waiting.clear()
    while index < EVENTS:
        for count, (number, transport) in enumerate(streams.items()):
            transport.write(chunk(event(number, index)))
            if count % 100 == 99:
                await asyncio.sleep(0)
        index += 1
    for transport in streams.values():
        transport.write(chunk(b"data: [DONE]\\n\\n") + b"0\\r\\n\\r\\n")
class Engine(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        self.buffer += data
        found = re.search(rb'"stream-(\\d+)"\\}\\]\\}$', self.buffer)
        if found:
            number, self.buffer = int(found[1]), b""
            self.transport.write(HEAD + chunk(event(number, 0)))
            waiting[number] = self.transport
            if len(waiting) == STREAMS:
                asyncio.get_running_loop().call_later(2.0, lambda: asyncio.ensure_future(rest()))
async def main():
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", int(sys.argv[1]), backlog=8192)
    await server.serve_forever()
uvloop.run(main())
"""
)

CONTROL = """
import asyncio, sys, uvloop
from tests.fakes.control import Control
async def main():
    control = await Control.start(sys.argv[1])
    control.serve("m", sys.argv[2])
    await asyncio.Event().wait()
uvloop.run(main())
"""


@dataclass
class Found:
    """What came out. wrong: streams whose bytes differ from what the engine sent them; truncated: that ended early."""

    streams: int
    complete: int = 0
    wrong: int = 0
    truncated: int = 0
    memory_bytes: float = 0.0  # per stream
    chunks_per_s: float = 0.0
    cpu_us_per_chunk: float = 0.0


def _body(number: int, events: int) -> bytes:
    """As the engine writes it, chunk framing included."""
    names: dict[str, object] = {"EVENTS": events}
    exec(SHARED, names)
    event, chunk = names["event"], names["chunk"]
    chunks = [chunk(event(number, index)) for index in range(events)]  # type: ignore[operator]
    return b"".join([*chunks, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"])  # type: ignore[operator]


class _Client(asyncio.Protocol):
    """One stream."""

    def __init__(self, number: int, opened: asyncio.Queue[int], done: asyncio.Future[bytes]) -> None:
        self._number = number
        self._opened: asyncio.Queue[int] | None = opened
        self._done = done
        self._received: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"stream-%d"}]}' % self._number
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: p\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        transport.write(head % len(body) + body)  # type: ignore[attr-defined]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        if self._opened is not None:
            self._opened.put_nowait(self._number)
            self._opened = None
        if data.endswith(b"0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(b"".join(self._received))


async def _load(port: int, pid: int, streams: int, events: int) -> Found:
    loop = asyncio.get_running_loop()
    found = Found(streams)
    before = _resident_bytes(pid)
    opened: asyncio.Queue[int] = asyncio.Queue()
    done: list[asyncio.Future[bytes]] = [loop.create_future() for _ in range(streams)]
    async with asyncio.timeout(WAIT_S_MAX):
        for number in range(streams):
            await loop.create_connection(lambda n=number: _Client(n, opened, done[n]), "127.0.0.1", port)  # type: ignore[misc]
        for _ in range(streams):
            await opened.get()
        found.memory_bytes = (_resident_bytes(pid) - before) / streams
        began, cpu_s = time.perf_counter(), _cpu_s(pid)
        bodies = await asyncio.gather(*done)
    wall_s = time.perf_counter() - began
    chunks = streams * events
    found.chunks_per_s = chunks / wall_s
    found.cpu_us_per_chunk = (_cpu_s(pid) - cpu_s) / chunks * 1e6
    for number, raw in enumerate(bodies):
        head, _, body = raw.partition(b"\r\n\r\n")
        expected = _body(number, events)
        good = head.startswith(b"HTTP/1.1 200") and body == expected
        found.complete += good
        found.truncated += not good and expected.startswith(body)
    found.wrong = streams - found.complete - found.truncated
    return found


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _start(stack: ExitStack, *argv: str) -> int:
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def _wait_ready(url: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url + "/ready", timeout=2).close()
            return
        except OSError:
            assert time.monotonic() < until, f"{url} is not ready"
            time.sleep(0.05)  # another process's port: nothing to wait on


def measure(streams: int = STREAMS, events: int = EVENTS) -> Found:
    """One run with processes of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * streams + 500  # the data plane has two sockets a stream
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RuntimeError(f"{streams} streams need {needed} open files; the limit here is {hard}")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    first = free_ports(2)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-"))
        control, engine = f"unix:{directory}/c.sock", f"http://127.0.0.1:{first + 1}"
        _start(stack, "-c", ENGINE, str(first + 1), str(streams), str(events))
        _start(stack, "-c", CONTROL, control, engine)
        flags = ("--decision-timeout-ms", "20000", "--log-level", "error")
        pid = _start(stack, "-m", "dataplane", "--port", str(first), "--control", control, *flags)
        _wait_ready(f"http://127.0.0.1:{first}")
        return uvloop.run(_load(first, pid, streams, events))


def run() -> None:
    print((__doc__ or "").strip(), end="\n\n")
    found = measure()
    print(f"streams at once               {found.streams:>10,}")
    print(f"complete, every byte equal    {found.complete:>10,}")
    print(f"truncated                     {found.truncated:>10,}")
    print(f"other bytes                   {found.wrong:>10,}")
    print(f"memory per stream             {found.memory_bytes / 1024:>10.1f} KiB")
    print(f"chunks relayed                {found.chunks_per_s:>10,.0f} /s")
    print(f"CPU of the data plane         {found.cpu_us_per_chunk:>10.1f} us a chunk (connections already open)")


if __name__ == "__main__":
    run()

"""How soon the engine hears that a client has left: from the client's close to the end of the engine's connection.

Method: the control plane and one data-plane process as `headway bench proxy` starts them; engine and leaving clients are raw
protocols in this process, which reads both ends by one clock, so the time includes this process's own loop. Each client asks
for a stream, gets its first event, and closes (or resets) its connection; the engine's end of that very stream is timed. Once
on an idle proxy, once beside a closed loop of small requests at 16 connections, for which the same engine answers.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random

import uvloop

from headway.bench_proxy import programs, prompts
from headway.bench_proxy.processes import free_port
from headway.bench_proxy.prompts import MODEL, Scenario
from headway.bench_proxy.routers import Bench

CLIENTS = 400
LOAD_CLIENTS = 16
WAIT_S = 20.0
BOUND_MS = 50.0

_BODY = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}'
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n"
_BEGUN = _STREAM % (len(_EVENT), _EVENT)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_NUMBER = re.compile(rb'"leaving ([0-9]+)"')


class Leaving:
    """When each client closed, and its engine heard of it (seconds, by number)."""

    def __init__(self) -> None:
        self.left: dict[int, float] = {}
        self.heard: dict[int, asyncio.Future[float]] = {}


class Engine(asyncio.Protocol):
    """Answers small requests at once; a stream of a leaving client gets its first event and no other."""

    def __init__(self, leaving: Leaving) -> None:
        self._leaving = leaving
        self._buffer = b""
        self._number = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        found = _LENGTH.search(self._buffer, 0, end + 2) if end >= 0 else None
        if found is None or len(self._buffer) < end + 4 + int(found[1]):
            return
        leaves = _NUMBER.search(self._buffer, end)
        self._buffer = b""
        if leaves is None:
            self._transport.write(_WHOLE)
        else:
            self._number = int(leaves[1])
            self._transport.write(_BEGUN)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._number >= 0:
            self._leaving.heard[self._number].set_result(time.monotonic())


async def _leave(leaving: Leaving, port: int, number: int, *, reset: bool) -> float:
    """ms from one client's end to its engine's."""
    body = b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"leaving %d"}]}' % (MODEL.encode(), number)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    leaving.heard[number] = asyncio.get_running_loop().create_future()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head % len(body) + body)
    async with asyncio.timeout(WAIT_S):
        await reader.readuntil(_EVENT)
        left = time.monotonic()
        if reset:
            writer.transport.abort()
        else:
            writer.close()
        return 1000 * (await leaving.heard[number] - left)


async def _measure(port: int, engine_port: int, built: programs.Programs, requests: Path) -> None:
    leaving, loop, numbers = Leaving(), asyncio.get_running_loop(), iter(range(10**9))
    server = await loop.create_server(lambda: Engine(leaving), "127.0.0.1", engine_port)
    for loaded in (False, True):
        for reset in (False, True):
            load = None
            if loaded:
                load = asyncio.create_task(
                    asyncio.to_thread(built.run_load, port, requests, clients=LOAD_CLIENTS, seconds=CLIENTS / 100)
                )
                await asyncio.sleep(0.5)  # until the load is at its rate
            times = sorted([await _leave(leaving, port, next(numbers), reset=reset) for _ in range(CLIENTS)])
            p50, p99, most = times[CLIENTS // 2], times[CLIENTS * 99 // 100], times[-1]
            how = f"{'reset' if reset else 'close'}, {'beside a closed loop' if loaded else 'idle'}"
            print(f"{how:32} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms   max {most:6.2f} ms   (bound: {BOUND_MS:g} ms)")
            if load is not None:
                await load
    server.close()


def run() -> None:
    """Prints one line for each way of leaving."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-")))
        built = programs.build(directory)
        engine_port = free_port()
        [router], missing = Bench(stack, directory, [engine_port]).start(["headway:round_robin"])
        assert not missing, missing
        router.prepare()
        path = directory / "small.requests"
        prompts.write(Scenario("small", 200, LOAD_CLIENTS), path, Random(1))
        uvloop.run(_measure(router.port, engine_port, built, path))

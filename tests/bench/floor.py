"""What a router written in Python cannot go below: the least that such a process can do for a request, beside real routers.

Two relays in the harness of `headway bench proxy`, doing nothing that a router is there for:

relay        uvloop transports, httptools for requests, the next engine in turn; responses passed on by Content-Length alone,
             chunked ones until a read ends as the last chunk does
relay+grpc   the same, asking a second process on one gRPC stream where each request goes, many questions in a message: both
             sides pack and unpack a number with `struct`, nothing is looked up, counted, or reported back

No body is read, no header written, nothing timed, retried, measured or refused. Ours does all of it: what lies between its
row and `relay+grpc` is the price of that in Python, what lies between `relay+grpc` and nginx that of Python and gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, cast

import grpc
import httptools
import uvloop
from rich.console import Console

from headway.bench_proxy import programs, prompts, table
from headway.bench_proxy.measure import Throughput
from headway.bench_proxy.processes import Process, free_port, free_ports
from headway.bench_proxy.prompts import Scenario
from headway.bench_proxy.routers import Bench, Router

ROUNDS = 3
SECONDS = 1.5
CLIENTS = 64
ENGINES = 4
BESIDE = ["nginx", "vllm:round_robin", "headway:round_robin", "headway:lmetric"]
PACED_BESIDE = ["nginx", "headway:round_robin"]
PACED = Scenario("paced", 200, 256, 64, 10)
"""As `headway bench proxy` paces streams."""
CHUNKED = -1
WIDTH = 150
GATHER_S = 0.001
"""Between two messages: about as many questions in each as ours has. Without it a request costs half as much again."""
METHOD = "/floor.Floor/Route"

_QUESTION = struct.Struct("<Q68x")  # as long as one of ours without a prompt
_ANSWER = struct.Struct("<QII")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


class Engine(asyncio.Protocol):
    """A kept-alive connection to an engine."""

    def __init__(self, idle: list[Engine]) -> None:
        self._idle = idle
        self._left = 0
        self.client: Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self.client is not None
        if self._left == 0:
            end = data.find(b"\r\n\r\n")
            found = _LENGTH.search(data, 0, end + 2)
            self._left = end + 4 + int(found[1]) if found is not None else CHUNKED
        if self._left > 0:
            self._left -= len(data)
        elif data.endswith(b"\r\n0\r\n\r\n") or data == b"0\r\n\r\n":
            self._left = 0
        self.client.transport.write(data)
        if self._left == 0:
            self.client = None
            self._idle.append(self)


class Client(asyncio.Protocol):
    """A client's connection, one whole request a read."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._parser = httptools.HttpRequestParser(self)
        self._whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def on_message_complete(self) -> None:
        self._whole = True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._whole:
            self._whole = False
            self._relay.place(self, data)


class Relay:
    """engines: ports."""

    def __init__(self, engines: list[int]) -> None:
        self._engines = engines
        self._turn = itertools.cycle(range(len(engines)))
        self._idle: list[list[Engine]] = [[] for _ in engines]
        self._connects: set[asyncio.Task[None]] = set()

    def place(self, client: Client, data: bytes) -> None:
        self.send(next(self._turn), client, data)

    def send(self, engine: int, client: Client, data: bytes) -> None:
        if self._idle[engine]:
            connection = self._idle[engine].pop()
            connection.client = client
            connection.transport.write(data)
        else:
            task = asyncio.get_running_loop().create_task(self._connect(engine, client, data))
            self._connects.add(task)
            task.add_done_callback(self._connects.discard)

    async def _connect(self, engine: int, client: Client, data: bytes) -> None:
        idle = self._idle[engine]
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Engine(idle), "127.0.0.1", self._engines[engine])
        connection.client = client
        connection.transport.write(data)


class AskingRelay(Relay):
    """Asks where to. A message leaves GATHER_S after the one before was answered, with the questions since then."""

    def __init__(self, engines: list[int], call: Any) -> None:
        super().__init__(engines)
        self._call = call
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[Client, bytes]] = {}
        self._questions: list[bytes] = []
        self._asked = asyncio.Event()

    def place(self, client: Client, data: bytes) -> None:
        number = next(self._ids)
        self._waiting[number] = (client, data)
        self._questions.append(_QUESTION.pack(number))
        self._asked.set()

    async def run(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            questions, self._questions = self._questions, []
            await self._call.write(b"".join(questions))
            for number, engine, _ in _ANSWER.iter_unpack(await self._call.read()):
                client, data = self._waiting.pop(number)
                self.send(engine, client, data)
            await asyncio.sleep(GATHER_S)  # what is measured: questions gather for so long


async def relay(port: int, first_engine: int, target: str) -> None:
    """Serves until killed. target: of the control side, "": decide here."""
    loop = asyncio.get_running_loop()
    engines = [first_engine + number for number in range(ENGINES)]
    if not target:
        found = Relay(engines)
    else:
        channel = grpc.aio.insecure_channel(target)
        await channel.channel_ready()
        found = AskingRelay(engines, channel.stream_stream(METHOD)())
    server = await loop.create_server(lambda: Client(found), "127.0.0.1", port, backlog=4096)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve_forever())
        if isinstance(found, AskingRelay):
            group.create_task(found.run())


async def control(target: str) -> None:
    """Answers every question with the next engine, until killed."""
    turn = itertools.cycle(range(ENGINES))

    async def route(requests: AsyncIterator[bytes], context: Any) -> None:
        while (questions := await context.read()) is not grpc.aio.EOF:
            await context.write(
                b"".join([_ANSWER.pack(number, next(turn), 0) for (number,) in _QUESTION.iter_unpack(questions)])
            )

    service, method = METHOD[1:].split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: grpc.stream_stream_rpc_method_handler(route)}),)
    )
    server.add_insecure_port(target)
    await server.start()
    await server.wait_for_termination()


def _start(stack: ExitStack, directory: Path, first_engine: int, *, asks: bool) -> Router:
    name = "relay+grpc" if asks else "relay"
    target = f"unix:{directory}/floor.sock" if asks else ""
    port, pids = free_port(), []
    if asks:
        answering = Process("control", [sys.executable, "-m", __spec__.name, "control", target], directory)
        stack.callback(answering.end)
        pids.append(answering.pid)
    argv = [sys.executable, "-m", __spec__.name, "relay", str(port), str(first_engine), target]
    process = Process(name, argv, directory)
    stack.callback(process.end)
    process.wait_for(port)
    return Router(name, port, (process.pid, *pids))


def run() -> None:
    """Prints the table of `headway bench proxy` with the floors in it; other routers where they are installed."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-")))
        built = programs.build(directory)
        first_engine = free_ports(ENGINES)
        engine = Process("engine", [*built.backend, str(first_engine), str(ENGINES)], directory)
        stack.callback(engine.end)
        engine.wait_for(first_engine)
        ports = [first_engine + number for number in range(ENGINES)]
        small = _measurement(Scenario("small", 200, CLIENTS), directory, built)
        paced = _measurement(PACED, directory, built)
        missing: dict[str, str] = {}
        for number in range(ROUNDS):
            with ExitStack() as started:
                place = directory / f"round-{number}"
                place.mkdir()
                floors = [_start(started, place, first_engine, asks=asks) for asks in (False, True)]
                found, missing = Bench(started, place, ports).start(BESIDE)
                small.round([*floors, *found])
                paced.round([floors[0], *[router for router in found if router.name in PACED_BESIDE]])
    _print(small, f"prompts of 200 characters, {CLIENTS} clients")
    _print(paced, f"{PACED.clients} streams, a chunk every {PACED.pace_ms} ms on each")
    for name, why in missing.items():
        print(f"left out: {name}: {why}")


def _measurement(scenario: Scenario, directory: Path, built: programs.Programs) -> Throughput:
    path = directory / f"{scenario.name}.requests"
    prompts.write(scenario, path, Random(1))
    return Throughput(scenario, path, built, SECONDS, lambda text: None)


def _print(measured: Throughput, what: str) -> None:
    name = measured.scenario.name
    title = f"{name}: {what}; {ROUNDS} rounds of {SECONDS:g} s, routers in turn and started anew for each, medians"
    Console(width=WIDTH).print(table.cost_table(title, measured.figures()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["relay"]:
        uvloop.run(relay(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
    elif sys.argv[1:2] == ["control"]:
        uvloop.run(control(sys.argv[2]))
    else:
        run()

"""A whole data plane while requests of 128,000 tokens pass through it: how long its event loop lets a byte wait meanwhile.

Method: one data plane (`App`) on this process's loop, an engine and a caller in processes of their own; ten requests one after
the other, English and Chinese, from the first byte read to the last byte answered: the body read and put together, prepared,
sent to the engine. Once with the process for long prompts, once with the thread. `_heartbeat` says what is measured; the loop's
thread has real-time priority where that is allowed, so that its waits for a processor are not in the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import uvloop

from contract import tokens
from dataplane.__main__ import GC_OBJECTS, SWITCH_INTERVAL_S
from dataplane.app import App
from dataplane.settings import Settings
from runtime.clock import SystemClock
from tests.bench._heartbeat import Heartbeat, Waits, processor_of_its_own
from tests.bench.tokens import LONG_TOKENS, chinese, conversation, words
from tests.waiting import until

REQUESTS = 10
MESSAGES = 200
REST_S = 0.1

_ENGINE = """
import asyncio, contextlib
BODY = b'{"choices":[{"finish_reason":"stop","message":{"content":"x"}}]}'
async def serve(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError):
        while head := (await reader.readuntil(b"\\r\\n\\r\\n")).lower():
            await reader.readexactly(int(head.split(b"content-length:")[1].split()[0]))
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\n")
            writer.write(b"content-length: %d\\r\\n\\r\\n" % len(BODY) + BODY)
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
_CALLER = """
import socket, sys
sys.stdin.readline()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as caller, open(sys.argv[2], "rb") as file:
    caller.sendall(file.read())
    print(caller.recv(65536).split()[1].decode())
"""


def run() -> None:
    """Prints the median and the worst of each kind."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    print("event loop's longest wait, whole requests of 128k tokens, ms: median and worst of 10    held          wall")
    engine = _start(_ENGINE)
    assert engine.stdout is not None
    url = f"http://127.0.0.1:{int(engine.stdout.readline())}"
    try:
        for process in (True, False):
            uvloop.run(_requests(url, process=process))
    finally:
        sys.setswitchinterval(before)
        engine.kill()
        engine.wait()


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def _requests(url: str, *, process: bool) -> None:
    settings = Settings(port=0, endpoint=(f"m={url}",), tokenizer=(f"m={tokens.BUILTIN}",), prompt_process=process)
    app = App(settings, SystemClock())
    port = await app.start()
    await until(lambda: app.prompts.status(app.gateway.fleet.models.values()) == {"m": "ready"}, "the tokenizer is loaded")
    beside = app.gateway.prompt_process
    await until(lambda: beside is None or beside.ready, "in the process for long prompts, too")
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 100)
    rng = Random(1)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(PermissionError):
            stack.enter_context(processor_of_its_own())
        heartbeat = stack.enter_context(Heartbeat(()))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "request"
        for make in (words, chinese):
            waits: list[Waits] = []
            for _ in range(REQUESTS):
                body = json.dumps({"model": "m", "messages": conversation(rng, LONG_TOKENS, MESSAGES, make)}).encode()
                head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
                path.write_bytes(head + b"content-length: %d\r\n\r\n" % len(body) + body)
                await asyncio.sleep(REST_S)  # the loop at rest, before what is measured
                heartbeat.stretch()
                caller = await asyncio.to_thread(_start, _CALLER, str(port), str(path))
                await asyncio.sleep(REST_S)  # what starting it took is not a request's
                heartbeat.stretch()
                said, _ = await asyncio.to_thread(caller.communicate, b"now\n")
                assert said == b"200\n", said
                waits.append(heartbeat.stretch())
            what = f"{'English' if make is words else 'Chinese'}, {'process' if process else 'thread'}"
            print(f"{what:80}{_spread([w.held_s for w in waits])}{_spread([w.wall_s for w in waits])}")
    await app.stop()
    gc.unfreeze()


def _spread(seconds: list[float]) -> str:
    values = sorted(seconds)
    return f"{values[len(values) // 2] * 1e3:9.2f} {values[-1] * 1e3:6.2f}"

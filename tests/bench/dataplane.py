"""What the data plane executes for a request and for a stream, without a socket: user instructions of one thread.

Method: the parts of one process put together as `App` does, reads handed to its connections as uvloop would, BATCH requests at
a time, each of ROUNDS after WARM_ROUNDS; the control plane's answers are made here. Prompts of 200 characters, a stream is its
head, EVENTS events of one chunk each, and its end in a read with the last. What uvloop and the kernel take is not in it.

    small            an answer in one read, a policy that reads no prompt
    small, prompts   the same, with the shipped tokenizer and block hashes
    stream           a policy that reads no prompt
    stream, prompts  one that reads it, and wants to know when tokens came last
    ..., access log  the same with a line a request, but for its writing, which another thread does
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any, cast

import uvloop

from contract.routing import Answer, pack, unpack_answers
from dataplane import rows
from dataplane.app import App
from dataplane.connection import ClientConnection
from dataplane.fallback import static_view
from dataplane.settings import Settings
from dataplane.upstream import UpstreamConnection
from runtime.clock import SystemClock
from tests.bench.control import Counter
from tests.bench.proxy_micro import ANSWER, WORDS
from tests.fakes.backend import LAST_CHUNK, STREAM_HEAD, chunk, delta, event
from tests.waiting import until

BATCH = 16
ROUNDS = 60
WARM_ROUNDS = 20
EVENTS = 64
PROMPT_CHARS = 200
BODIES = 500
URL = "http://127.0.0.1:1"
KINDS = ("small", "small, access log", "small, prompts", "stream", "stream, access log", "stream, prompts")


class _Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append

    def set_write_buffer_limits(self, **limits: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None: ...

    def is_closing(self) -> bool:
        return False


class _Bench:
    """One data plane. kind: of KINDS."""

    def __init__(self, kind: str, counter: Counter) -> None:
        self._counter = counter
        self.streams = kind.startswith("stream")
        access_log = os.devnull if kind.endswith("access log") else ""
        self.app = App(Settings(control=("127.0.0.1:1",), access_log=access_log), SystemClock())
        self.view = static_view([("m", URL)])
        self.view.without_chains = not kind.endswith("prompts")
        self.view.models[0].block_sizes.append(16)
        self.view.models[0].tokenizer = "headway-8k"
        gateway = self.app.gateway
        gateway.fleet.apply(self.view)
        self.app.prompts.see(self.view.models, 0.0, wanted=not self.view.without_chains)
        gateway.control.connected = True
        gateway.pool.tokens.wanted = kind.endswith("prompts")
        self._clients, engines = [], []
        for _ in range(BATCH):
            client, engine = ClientConnection(self.app.server), UpstreamConnection(gateway.pool, URL)
            self._clients.append(client)
            engines.append(engine)
        for connection in (*self._clients, *engines):
            connection.connection_made(cast(asyncio.Transport, _Transport()))
        for engine in engines:
            gateway.pool.give(engine, gateway.clock.now())
        self._requests = [_request(Random(number), streams=self.streams) for number in range(BODIES)]
        self._asked = 0
        self.counts: dict[str, int] = defaultdict(int)
        self._empty = 0  # what counting takes
        for _ in range(BODIES):
            self._count("empty", _nothing, None)
        self._empty = self.counts.pop("empty") // BODIES

    async def ready(self) -> None:
        """With its tokenizer, where it needs one."""
        if not self.view.without_chains:
            await until(lambda: self.app.prompts.status(self.view.models)["m"] == "ready")

    def _count(self, step: str, what: Callable[[Any], Any], argument: Any) -> Any:
        before = self._counter.read()
        found = what(argument)
        self.counts[step] += self._counter.read() - before - self._empty
        return found

    def round(self) -> None:
        """BATCH requests, from their bytes to the last of their answers."""
        control = self.app.control
        for client in self._clients:
            self._asked += 1
            self._count("request read and asked about", client.data_received, self._requests[self._asked % BODIES])
        said = control._gathered()
        self._count("questions and outcomes packed", pack, said)
        packed = pack([_answer(rows.asked(asked).question_id) for asked in said.questions])
        answers = self._count("decisions unpacked", unpack_answers, packed)
        self._count("decisions taken, requests sent", control._take, answers)
        engines = [_engine(client) for client in self._clients]
        for step, data in STREAM if self.streams else ANSWERED:
            for engine in engines:
                self._count(step, engine.data_received, data)
        for engine in engines:
            cast(_Transport, engine.transport).written.clear()
        for client in self._clients:
            assert client.exchange is None, "a request is still under way"
            cast(_Transport, client.transport).written.clear()
        self.app.gateway.metrics.fold()


def _request(rng: Random, *, streams: bool) -> bytes:
    text = " ".join(rng.choices(WORDS, k=PROMPT_CHARS // 2))[:PROMPT_CHARS]
    fields = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": EVENTS}
    body = json.dumps(fields | {"stream": True} if streams else fields).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _nothing(argument: None) -> None: ...


def _answer(question_id: int) -> Answer:
    return Answer(question_id, question_id, 1, URL, "static-1", 0, "round_robin")


def _engine(client: ClientConnection) -> UpstreamConnection:
    assert client.exchange is not None
    attempt = client.exchange._attempt
    assert attempt is not None
    assert attempt.connection is not None
    return attempt.connection


_BODY = json.dumps(ANSWER, separators=(",", ":")).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY
EVENT = chunk(event(delta("word ")))
END = chunk(event(delta("end", finish="stop")) + event("[DONE]")) + LAST_CHUNK
ANSWERED = [("answer passed on", WHOLE)]
STREAM = [
    ("head of the stream", STREAM_HEAD),
    ("first event", EVENT),
    *[("event, each", EVENT)] * (EVENTS - 2),
    ("end of the stream", END),
]


async def _run(kind: str, counter: Counter) -> dict[str, float]:
    bench = _Bench(kind, counter)
    await bench.ready()
    for number in range(WARM_ROUNDS + ROUNDS):
        if number == WARM_ROUNDS:
            bench.counts.clear()
        bench.round()
    requests = BATCH * ROUNDS
    bench.app.gateway.control.connected = False
    return {step: count / requests / (EVENTS - 2 if step.endswith("each") else 1) for step, count in bench.counts.items()}


def run() -> None:
    """Prints instructions a request by step; nothing where they cannot be counted."""
    counter = Counter()
    if not counter.read():
        print("skipped: instructions cannot be counted here (perf_event_open)")
        return
    gc.collect()
    gc.freeze()
    for kind in KINDS:
        counts = uvloop.run(_run(kind, counter))
        total = sum(count * (EVENTS - 2 if step.endswith("each") else 1) for step, count in counts.items())
        print(f"\n{kind}: {total:,.0f} user instructions a request")
        for step, count in counts.items():
            print(f"  {step:32} {count:9,.0f}")


if __name__ == "__main__":
    run()

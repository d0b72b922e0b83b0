"""A hand-written vLLM for agents: real HTTP, real ZeroMQ sockets, and a test's hand on every wire."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections import deque
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from aiohttp import web

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{model}"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="{model}"}} {waiting}
vllm:engine_sleep_state{{engine="0",model_name="{model}",sleep_state="awake"}} {awake}
vllm:kv_cache_usage_perc{{engine="0",model_name="{model}"}} 0.25
vllm:prompt_tokens_total{{engine="0",model_name="{model}"}} {prompt_tokens}
vllm:generation_tokens_total{{engine="0",model_name="{model}"}} {generation_tokens}
vllm:cache_config_info{{block_size="{block_size}",engine="0",num_gpu_blocks="{blocks}"}} 1.0
process_start_time_seconds {process_start}
"""
END = (-1).to_bytes(8, "big", signed=True)
BLOCK = 4
REBIND_S_MAX = 5.0


class FakeRank:
    """The publisher of one rank: a numbered stream with a buffer for replay."""

    def __init__(self, context: zmq.asyncio.Context, rank: int, *, buffer_steps: int = 1000) -> None:
        self.rank = rank
        self.sequence = 0
        self.buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self.replays = 0
        self._context = context
        self.publish_port = self.replay_port = 0
        self.open()

    def open(self) -> None:
        """Bind, on the same ports as before where there were any."""
        self._publisher = self._context.socket(zmq.XPUB)
        self._router = self._context.socket(zmq.ROUTER)
        self.publish_port = _bind(self._publisher, self.publish_port)
        self.replay_port = _bind(self._router, self.replay_port)
        self._task = asyncio.create_task(self._serve_replay())

    def close(self) -> None:
        self._task.cancel()
        self._publisher.close(linger=0)
        self._router.close(linger=0)

    async def subscribed(self) -> None:
        """Returns once an agent's subscription has arrived."""
        await asyncio.wait_for(self._publisher.recv(), 10)

    async def send(self, *events: Any, lost: bool = False, payload: bytes | None = None) -> None:
        """One engine step's events. lost: buffered and numbered, but never on the wire."""
        data = msgspec.msgpack.encode([time.time(), list(events), self.rank]) if payload is None else payload
        number, self.sequence = self.sequence, self.sequence + 1
        self.buffer.append((number, data))
        if not lost:
            await self._publisher.send_multipart([b"kv-events", number.to_bytes(8, "big"), data])

    async def send_raw(self, *frames: bytes) -> None:
        await self._publisher.send_multipart(list(frames))

    async def _serve_replay(self) -> None:
        while True:
            peer, empty, start = await self._router.recv_multipart()
            self.replays += 1
            for number, data in list(self.buffer):
                if number >= int.from_bytes(start, "big"):
                    await self._router.send_multipart([peer, empty, b"kv-events", number.to_bytes(8, "big"), data])
            await self._router.send_multipart([peer, empty, b"", END, b""])


class FakeEngine:
    """Start it, change its fields, make it publish. `restart()` and `stop()` do to it what happens to engines."""

    def __init__(self, *, ranks: int = 1, blocks: int = 1000, buffer_steps: int = 1000, model: str = "tiny") -> None:
        self.model = model
        self.figures: dict[str, Any] = {
            "running": 0, "waiting": 0, "awake": 1.0, "prompt_tokens": 7, "generation_tokens": 0, "block_size": BLOCK,
            "blocks": blocks, "process_start": 1_700_000_000.0,
        }  # fmt: skip
        self.health_status = 200
        self.metrics_gate = asyncio.Event()
        """While clear, /metrics does not answer."""
        self.metrics_gate.set()
        self.adapters: list[str] = []
        self.sends_events = True
        self.scrapes = 0
        self._context = zmq.asyncio.Context.instance()  # never ended: one forgotten with a socket open hangs its collector
        self.ranks = [FakeRank(self._context, rank, buffer_steps=buffer_steps) for rank in range(ranks)]
        self._seed = 0
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/kv_event_sources", self._sources)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Nothing listens any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for rank in self.ranks:
            rank.close()

    async def restart(self) -> None:
        """Another run on the same addresses: numbering from 0, empty cache and buffer, other engine hashes."""
        await self.stop()
        self.forget()
        for rank in self.ranks:
            rank.open()
        await self.start()

    def forget(self) -> None:
        """What a new run does not know, without closing a socket."""
        self._seed += 1
        self.figures |= {
            "process_start": self.figures["process_start"] + 60, "prompt_tokens": 0, "generation_tokens": 0,
        }  # fmt: skip
        for rank in self.ranks:
            rank.sequence = 0
            rank.buffer.clear()

    async def close(self) -> None:
        await self.stop()

    def names(self, tokens: list[int], *, parent: int | None = None, block_size: int = BLOCK) -> list[int]:
        """Engine hashes of full blocks: this engine's own function, of no meaning to anybody else."""
        names = []
        for start in range(0, len(tokens) - block_size + 1, block_size):
            parent = hash((self._seed, parent, tuple(tokens[start : start + block_size]))) & (2**64 - 1)
            names.append(parent)
        return names

    def stored(self, tokens: list[int], *, parent: int | None = None, **fields: Any) -> dict[str, Any]:
        return {
            "type": "BlockStored",
            "block_hashes": self.names(tokens, parent=parent),
            "parent_block_hash": parent,
            "token_ids": tokens,
            "block_size": BLOCK,
            "medium": "GPU",
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
            **fields,
        }

    def removed(self, *names: int, **fields: Any) -> dict[str, Any]:
        return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU", "group_idx": 0, **fields}

    async def _metrics(self, request: web.Request) -> web.Response:
        await self.metrics_gate.wait()
        self.scrapes += 1
        return web.Response(text=PAGE.format(model=self.model, **self.figures))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health_status)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, request: web.Request) -> web.Response:
        base = {"id": self.model, "root": "models/tiny", "parent": None, "max_model_len": 4096}
        adapters = [
            {"id": name, "root": f"loras/{name}", "parent": self.model, "max_model_len": None} for name in self.adapters
        ]
        return web.json_response({"object": "list", "data": [base, *adapters]})

    async def _sources(self, request: web.Request) -> web.Response:
        if not self.sends_events:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response(
            {
                str(rank.rank): {
                    "enable_kv_cache_events": True,
                    "publisher": "zmq",
                    "endpoint": f"tcp://*:{rank.publish_port}",
                    "replay_endpoint": f"tcp://*:{rank.replay_port}",
                    "buffer_steps": 1000,
                    "topic": "kv-events",
                }
                for rank in self.ranks
            }
        )


def _bind(socket: Any, port: int) -> int:
    """A port used before is freed by ZeroMQ's own thread, some moments after its socket was closed: asked again until then."""
    if not port:
        return int(socket.bind_to_random_port("tcp://127.0.0.1"))
    deadline = time.monotonic() + REBIND_S_MAX
    while True:
        try:
            socket.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            threading.Event().wait(0.01)
        else:
            return port

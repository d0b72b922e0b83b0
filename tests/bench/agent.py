"""What a block costs the agent, from ZeroMQ frame to Redis, and what a scrape costs."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import zmq
from aiohttp import web

from contract import blocks
from contract.keyspace import ModelCard
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from headway.embedded_redis import RedisServer
from runtime.clock import SystemClock
from tests.bench._traffic import BLOCK_SIZE, VOCABULARY, Traffic, removed, stored, traffics
from tests.bench.index import Sink, WatchedIndex
from tests.fakes.engine import BLOCK, FakeEngine
from tests.waiting import until
from worker_agent.agent import Agent
from worker_agent.block_set import BlockSet
from worker_agent.delta_log import DeltaLog
from worker_agent.discovery import EngineIdentity, record_of
from worker_agent.engine_client import EngineClient
from worker_agent.engine_info import EventEndpoint
from worker_agent.engine_metrics import parse
from worker_agent.follower import Follower, apply_all
from worker_agent.kv_events import Decoder, MalformedPayload
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings

PAGES = Path(__file__).parents[1] / "fixtures" / "vllm" / "metrics"
BLOCKS, PAYLOADS, REPEATS = 64, 1_000, 5
CACHE_PAYLOADS = 300
"""After so many an engine's cache is full, where it is one that evicts."""
PREFILL, DECODING, TURNOVER = "many blocks an event", "one block an event", "many, each for an evicted one"
TICK_PAYLOADS = 16
CAPACITY_PAYLOADS = 64
"""An agent at capacity: so many steps came while it worked on the tick before."""
PER_TICK = {
    PREFILL: (1, 4, TICK_PAYLOADS, CAPACITY_PAYLOADS),
    DECODING: (TICK_PAYLOADS, CAPACITY_PAYLOADS),
    TURNOVER: (TICK_PAYLOADS, CAPACITY_PAYLOADS),
}
ENGINES, EVENTS_PER_S, PATH_S = 4, 5_000, 4.0
MISSING_STEPS_MAX = 10
"""Of a measured rate: those of the last tick are still on their way."""
STEPS_PER_S, STEADY_S = (0, 20, 60, 200), 4.0
"""Of one engine: with nothing to do, with large steps, with usual ones, and more than there are ticks."""


def run() -> None:
    print(f"CPU time of this process, the least of {REPEATS} runs, collector frozen. {PAYLOADS:,} payloads as vLLM 0.32 packs")
    print(f"them, {BLOCKS} blocks of {BLOCK_SIZE} tokens each, ids below {VOCABULARY:,}. The engine is another process. A tick")
    print(
        "has a price of its own (two sockets, cold caches), whatever it carries; ZeroMQ's thread is counted. A block that goes"
    )
    print("for a new one is two block events. Traffic: what an engine sends once its cache is full (tests/bench/_traffic.py).")
    gc.collect()
    gc.freeze()
    kinds = _payloads()
    _decoding(kinds[PREFILL])
    for name, payloads in kinds.items():
        events = BLOCKS * (2 if name == TURNOVER else 1)
        print(f"  {name:<44}{_in_process(payloads) / events:6.3f} us a block event, payload -> BlockDelta bytes")
    served = list(traffics())
    for traffic in served:
        figure = _in_process(traffic.payloads, traffic.filling) * len(traffic.payloads) / traffic.blocks
        print(f"  {traffic.name:<44}{figure:6.3f} us a block event, payload -> BlockDelta bytes")
    _end_to_end(kinds, served)
    for page in ("load_waiting_lora", "dp2_load"):
        body = (PAGES / f"{page}.txt").read_bytes()
        print(
            f"  scrape of {page} ({len(body) // 1024} KB)      {_cpu(lambda body=body: parse(body), 200) * 1e6:6.0f} us a page"
        )


def _payloads() -> dict[str, list[bytes]]:
    """What an engine step sends: one event of many blocks (prefill), many of one (decoding), the same with evictions."""
    chance = random.Random(1)
    kinds: dict[str, list[bytes]] = {PREFILL: [], DECODING: [], TURNOVER: []}
    held: list[list[int]] = []
    for _ in range(PAYLOADS):
        names = [chance.getrandbits(64) for _ in range(BLOCKS)]
        tokens = [chance.randrange(VOCABULARY) for _ in range(BLOCKS * BLOCK_SIZE)]
        # A sequence fills a block in as many steps as this has tokens: each step's blocks are of other sequences.
        parents: list[Any] = held[-BLOCK_SIZE] if len(held) >= BLOCK_SIZE else [None] * BLOCKS
        held.append(names)
        gone = [removed(name) for name in held[0]]
        if len(held) > CACHE_PAYLOADS:
            del held[0]
        else:
            gone = []
        whole = [stored(names, tokens, None)]
        singles = [
            stored([name], tokens[BLOCK_SIZE * at : BLOCK_SIZE * (at + 1)], parents[at]) for at, name in enumerate(names)
        ]
        for kind, events in ((PREFILL, whole), (DECODING, singles), (TURNOVER, gone + whole)):
            kinds[kind].append(msgspec.msgpack.encode([time.time(), events, 0]))
    return kinds


def _cpu(work: Callable[[], Any], times: int) -> float:
    """Seconds of CPU a call."""
    figures = []
    for _ in range(REPEATS):
        before = time.process_time()
        for _ in range(times):
            work()
        figures.append((time.process_time() - before) / times)
    return min(figures)


def _decoding(payloads: list[bytes]) -> None:
    decoder = Decoder()

    def decode() -> None:
        for payload in payloads:
            decoder.decode(payload)

    print(f"  of which decoding, many blocks an event     {_cpu(decode, 1) / PAYLOADS / BLOCKS * 1e6:6.3f} us a block")


def _in_process(payloads: list[bytes], filling: Sequence[bytes] = ()) -> float:
    """us a payload through decoder, block set (a take every 16 payloads) and delta encoding; filling: before, not timed."""
    figures = []
    for _ in range(REPEATS):
        decoder, block_set, deltas = Decoder(), BlockSet("m", BLOCK_SIZE), DeltaLog()
        block_set.begin(0, 0.0)
        for payload in filling:
            block_set.apply(0, decoder.decode(payload))
        block_set.take()
        before = time.process_time()
        for start in range(0, len(payloads), TICK_PAYLOADS):
            apply_all(block_set, 0, decoder, payloads[start : start + TICK_PAYLOADS], _fail)
            deltas.append(block_set.take())
            deltas.acknowledge(deltas.sequence)
        figures.append((time.process_time() - before) / len(payloads) * 1e6)
    return min(figures)


def _fail(rank: int, error: MalformedPayload) -> None:
    raise AssertionError(f"a payload of rank {rank} is malformed: {error}")


def _end_to_end(kinds: dict[str, list[bytes]], served: list[Traffic]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="hw-"))
    server = RedisServer(directory)
    server.start()
    try:
        for name, payloads in kinds.items():
            for per_tick in PER_TICK[name]:
                events = per_tick * BLOCKS * (2 if name == TURNOVER else 1)
                figure = min(uvloop.run(_through_sockets(payloads, server.url, per_tick)) for _ in range(3)) / events
                print(f"  ZeroMQ frame -> XADD answered, {name:<32}{figure:6.3f} us a block event, {events:,} a tick")
        for traffic in served:
            print(f"  {traffic}")
            for per_tick in (1, TICK_PAYLOADS, CAPACITY_PAYLOADS):
                runs = (uvloop.run(_through_sockets(traffic.payloads, server.url, per_tick, traffic.filling)) for _ in range(3))
                tick, events = min(runs), traffic.blocks / len(traffic.payloads) * per_tick
                said = f"{tick / events:6.3f} us a block event, {tick:,.0f} us a tick of {per_tick} steps"
                print(f"    ZeroMQ frame -> XADD answered {' ' * 33}{said}")
        print(f"  A whole agent, scrapes and reports included, {STEADY_S:.0f} s at a steady rate of such steps (short chats)")
        for rate in STEPS_PER_S:
            share = min(uvloop.run(_whole_agent(served[-1], rate, server.url)) for _ in range(2))
            events = rate * served[-1].blocks / len(served[-1].payloads)
            print(f"    {rate:3} steps, {events:6,.0f} block events a second  {share:6.2%} of a core")
        uvloop.run(_whole_path(server.url))
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _engine(payloads: list[bytes], orders: Connection) -> None:
    """A process that publishes: answers its port, then sends as many payloads as it is told, 0 ends it."""
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.SNDHWM, 100_000)
    orders.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    socket.recv()
    orders.send("subscribed")
    sent = 0
    while count := orders.recv():
        for _ in range(count):
            socket.send_multipart([b"", sent.to_bytes(8, "big"), payloads[sent]])
            sent += 1
        orders.send(sent)
    context.destroy(linger=0)


async def _through_sockets(payloads: list[bytes], url: str, per_tick: int, filling: Sequence[bytes] = ()) -> float:
    """us of CPU of this process a tick, its ZeroMQ thread included; the engine is another process. filling: not timed."""
    orders, theirs = multiprocessing.Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=_engine, args=([*filling, *payloads], theirs), daemon=True)
    engine.start()
    endpoint = EventEndpoint(0, f"tcp://127.0.0.1:{orders.recv()}")
    identity = EngineIdentity((ModelCard("m", "m", "m", 4096),), "bench", BLOCK_SIZE, 0, 1, True, (endpoint,))
    follower = Follower(identity, BLOCK_SIZE, SystemClock(), virgin=True)
    publisher = Publisher(url, "bench", ids=random.Random(1))
    publisher.begin(1)
    record = record_of(identity, Settings(worker="bench", redis_url=url), 1, BLOCK_SIZE)
    orders.recv()
    await publisher.publish(0.0, record, None, follower.blocks)

    async def tick(steps: int) -> float:
        """CPU of the benchmark itself in it: the ZeroMQ thread works while the engine is told and answers."""
        before = time.thread_time()
        orders.send(steps)
        sent = orders.recv()
        own = time.thread_time() - before
        while follower.payloads < sent:
            await asyncio.sleep(0.002)  # the frames arrive meanwhile
            follower.poll()
        await publisher.publish(0.0, record, None, follower.blocks)
        return own

    for start in range(0, len(filling), TICK_PAYLOADS):
        await tick(min(TICK_PAYLOADS, len(filling) - start))
    ticks = len(payloads) // per_tick
    before = time.process_time()
    own = sum([await tick(per_tick) for _ in range(ticks)])
    spent = time.process_time() - before - own
    orders.send(0)
    engine.join()
    follower.close()
    await publisher.close()
    return spent / ticks * 1e6


class _Pages(FakeEngine):
    """Whose page is as long as an engine's."""

    async def _metrics(self, request: web.Request) -> web.Response:
        short = await super()._metrics(request)
        return web.Response(text=str(short.text) + (PAGES / "load_waiting_lora.txt").read_text())


def _steady_engine(filling: list[bytes], payloads: list[bytes], steps_per_s: int, orders: Connection) -> None:
    """A process that is an engine to an agent: its pages, what fills its cache at once, and once it is told to begin a payload
    a step at a steady rate."""
    asyncio.run(_steady(filling, payloads, steps_per_s, orders))


async def _steady(filling: list[bytes], payloads: list[bytes], steps_per_s: int, orders: Connection) -> None:
    pages = _Pages(ranks=0, blocks=1_000_000, model="m")
    pages.figures |= {"prompt_tokens": 0, "block_size": BLOCK_SIZE}
    await pages.start()
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    orders.send((pages.url, socket.bind_to_random_port("tcp://127.0.0.1")))
    await asyncio.to_thread(socket.recv)

    def send(number: int, payload: bytes) -> None:
        socket.send_multipart([b"", number.to_bytes(8, "big"), payload])

    for number, payload in enumerate(filling):
        send(number, payload)
    await asyncio.to_thread(orders.recv)
    began, length_s = time.perf_counter(), _length_s(len(payloads), steps_per_s)
    for number in range(int(steps_per_s * length_s)):
        # the pace of the engine
        await asyncio.sleep(max(0.0, began + number / steps_per_s - time.perf_counter()))
        send(len(filling) + number, payloads[number])
    await asyncio.sleep(max(0.0, began + length_s - time.perf_counter()))  # to the end of the span
    orders.send("end")
    await asyncio.to_thread(orders.recv)
    context.destroy(linger=0)
    await pages.close()


def _length_s(payloads: int, steps_per_s: int) -> float:
    """As long as there are payloads, STEADY_S at most."""
    return min(STEADY_S, payloads / steps_per_s) if steps_per_s else STEADY_S


async def _whole_agent(traffic: Traffic, steps_per_s: int, url: str) -> float:
    """The share of a core that this process takes, which is an agent's here; engine and Redis are others."""
    orders, theirs = multiprocessing.Pipe()
    filling = traffic.filling if steps_per_s else []
    engine = multiprocessing.get_context("spawn").Process(
        target=_steady_engine, args=(filling, traffic.payloads, steps_per_s, theirs), daemon=True
    )
    engine.start()
    engine_url, port = orders.recv()
    config = Settings(
        worker="steady", engine_url=engine_url, redis_url=url, kv_events=f"tcp://127.0.0.1:{port}", kv_replay="off"
    )
    publisher, client, epochs = (
        Publisher(url, config.worker, ids=random.Random(1)),
        EngineClient(engine_url),
        itertools.count(1),
    )
    agent = Agent(config, client, publisher, SystemClock(), lambda: next(epochs))
    loops = (agent.scrape_forever, agent.follow_forever, agent.publish_forever)
    tasks = [asyncio.create_task(loop()) for loop in loops]
    await agent.registered.wait()
    await until(lambda: _followed(agent) >= len(filling), "a full cache")
    before = time.process_time()
    orders.send("begin")
    await asyncio.to_thread(orders.recv)
    share = (time.process_time() - before) / _length_s(len(traffic.payloads), steps_per_s)
    expected = len(filling) + int(steps_per_s * _length_s(len(traffic.payloads), steps_per_s))
    assert _followed(agent) >= expected - MISSING_STEPS_MAX, f"{_followed(agent)} of {expected} payloads were followed"
    orders.send("end")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await agent.leave()
    agent.close()
    await publisher.close()
    await client.__aexit__(None, None, None)
    engine.join()
    return share


def _followed(agent: Agent) -> int:
    return agent._follower.payloads if agent._follower is not None else 0


def _engines(orders: Connection) -> None:
    """A process of several engines: single-block events at a steady rate, spread over them; answers when each was sent."""
    context: zmq.Context[Any] = zmq.Context()
    sockets = [context.socket(zmq.XPUB) for _ in range(ENGINES)]
    orders.send([socket.bind_to_random_port("tcp://127.0.0.1") for socket in sockets])
    for socket in sockets:
        socket.recv()
    orders.recv()
    sent: list[float] = []
    began = time.perf_counter()
    while len(sent) < EVENTS_PER_S * PATH_S:
        for number in range(len(sent), int((time.perf_counter() - began) * EVENTS_PER_S)):
            store = {"type": "BlockStored", "block_hashes": [number], "parent_block_hash": None, "block_size": BLOCK}
            event = store | {"token_ids": [number] * BLOCK, "medium": "GPU"}
            sent.append(time.time())
            payload = msgspec.msgpack.encode([sent[-1], [event], 0])
            sockets[number % ENGINES].send_multipart([b"", (number // ENGINES).to_bytes(8, "big"), payload])
        time.sleep(0.0005)  # the pace of the events
    orders.send(sent)
    orders.recv()
    context.destroy(linger=0)


async def _whole_path(url: str) -> None:
    """Engine's stamp to visible: real agents and a real ingest in this process, the engines and Redis in others."""
    orders, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_engines, args=(theirs,), daemon=True)
    process.start()
    index, sink = WatchedIndex(), Sink()
    tasks = [asyncio.create_task(Ingest(url, sink, index, SystemClock()).run())]
    closers = []
    for number, port in enumerate(orders.recv()):
        engine = FakeEngine(ranks=0, blocks=1_000_000)
        engine.figures["prompt_tokens"] = 0
        await engine.start()
        config = Settings(
            worker=f"path{number}", engine_url=engine.url, redis_url=url, kv_events=f"tcp://127.0.0.1:{port}", kv_replay="off"
        )
        publisher, client, epochs = (
            Publisher(url, config.worker, ids=random.Random(number)),
            EngineClient(engine.url),
            itertools.count(1),
        )
        agent = Agent(config, client, publisher, SystemClock(), lambda epochs=epochs: next(epochs))  # type: ignore[misc]
        tasks += [asyncio.create_task(loop()) for loop in (agent.scrape_forever, agent.follow_forever, agent.publish_forever)]
        closers.append((engine, agent, publisher, client))
    await until(lambda: sum(index.state(slot) is IndexState.EXACT for slot in sink.slots.values()) == ENGINES)
    orders.send("begin")
    sent = await asyncio.to_thread(orders.recv)
    root = blocks.root_hash("tiny")
    hashes = [blocks.chain(blocks.pack_tokens([number] * BLOCK), BLOCK, root)[0] for number in range(len(sent))]
    await until(lambda: len(index.visible_at) >= len(sent))
    lags = statistics.quantiles([(index.visible_at[one] - at) * 1e3 for one, at in zip(hashes, sent, strict=True)], n=100)
    print(
        f"  engine's stamp -> visible in the index       p50 {lags[49]:.1f} ms  p99 {lags[98]:.1f} ms   (p99 <= 50 ms)\n"
        f"    {EVENTS_PER_S:,} one-block events a second, {PATH_S:.0f} s, {ENGINES} engines; agents and ingest share a process"
    )
    orders.send("end")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for engine, agent, publisher, client in closers:
        agent.close()
        await publisher.close()
        await client.__aexit__(None, None, None)
        await engine.close()
    process.join()


if __name__ == "__main__":
    run()

"""The prefix index: look-up, update, memory, pauses, and the way from Redis into it. `python -m tests.bench.index`"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import redis.asyncio as redis

from contract import keyspace
from contract.keyspace import BlockDelta, EngineReport, ModelCard, SnapshotManifest, WorkerRecord
from controlplane.index_state import IndexState
from controlplane.ingest import Ingest
from controlplane.prefix_index import BlockChange, PrefixIndex, tune_gc
from headway.embedded_redis import RedisServer
from runtime.clock import SystemClock
from tests.suites.dict_table import DictTable
from tests.waiting import until

WORKERS = 64
DELTA_BLOCKS = 64
MEMORY_BLOCKS = 10_000_000
RUNS = 5
NONE: array[int] = array("Q")


def hashes(count: int, seed: int = 1) -> list[array[int]]:
    """Chains of 2,048 uniformly distributed hashes: what XXH64 yields."""
    words = np.random.default_rng(seed).integers(1, 2**64 - 1, size=count, dtype=np.uint64)
    return [array("Q", words[start : start + 2_048].tobytes()) for start in range(0, count, 2_048)]


def percentiles(step: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """(p50, p99) in microseconds of step(0), step(1), ...; of the quietest of several runs: others use this machine."""
    return min(_percentiles(step, rounds) for _ in range(RUNS))


def _percentiles(step: Callable[[int], object], rounds: int) -> tuple[float, float]:
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        step(number)
        times.append((time.perf_counter() - began) * 1e6)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98]


def line(name: str, value: str, target: str, method: str) -> None:
    print(f"  {name:<44} {value:>24}   {target:<16} {method}")


def exact_index(workers: int = WORKERS) -> PrefixIndex:
    index = PrefixIndex()
    for slot in range(workers):
        index.attach(slot, capacity_blocks=100_000, exact=True)
        index.set_state(slot, IndexState.EXACT)
    return index


# ----------------------------------------------------------------------------------------------------------- in memory


def lookups() -> None:
    chains = hashes(1_000_000)
    index, plain = exact_index(), DictTable()
    for number, one in enumerate(chains):
        index.store(number % WORKERS, one)
        plain.add(number % WORKERS, one)
    for _ in range(1_000):
        index.sweep()
    order = random.Random(1).sample(range(len(chains) - 1), len(chains) - 1)
    everyone = (1 << WORKERS) - 1
    for blocks, target in ((16, ""), (64, ""), (512, "<= 20 us p50"), (2_048, "<= 40 us p50")):
        questions = [chains[number][:blocks] for number in order]
        p50, p99 = percentiles(lambda n, q=questions: index.match(q[n % len(q)]), 480)  # type: ignore[misc]
        line(
            f"match, {blocks} blocks held by 1 of {WORKERS}",
            f"{p50:.1f} / {p99:.1f} us",
            target,
            f"p50/p99, 1 M blocks, every chain once a run, the quietest of {RUNS} runs",
        )
        p50, p99 = percentiles(lambda n, q=questions: list(plain.prefixes(q[n % len(q)], everyone)), 480)  # type: ignore[misc]
        line("  a dictionary, walked", f"{p50:.1f} / {p99:.1f} us", "", "the same questions; exact")
        p50, p99 = percentiles(lambda n, q=questions: gallop(plain, q[n % len(q)]), 480)  # type: ignore[misc]
        line("  a dictionary, bisected", f"{p50:.1f} / {p99:.1f} us", "", "the same; overcounts at holes")
    misses = hashes(1_000_000, seed=2)
    p50, p99 = percentiles(lambda n: index.match(misses[n % len(misses)]), 1_500)
    line("match, 2048 blocks held by no one", f"{p50:.1f} / {p99:.1f} us", "", "p50/p99")
    least_favourable()


def least_favourable() -> None:
    """The same at the highest load of a table, while a table moves, and with more lanes than a word has bits."""
    for name, workers, blocks, sweeps in (
        ("fullest table (0.43)", WORKERS, 900_000, 1_000),
        ("a table half moved", WORKERS, 1_000_000, 130),
        ("65 lanes", 65, 1_000_000, 1_000),
    ):
        chains = hashes(blocks)
        index = exact_index(workers)
        for number, one in enumerate(chains):
            index.store(number % workers, one)
        for _ in range(sweeps):
            index.sweep()
        for length in (512, 2_048):
            p50, p99 = percentiles(lambda n, i=index, c=chains, k=length: i.match(c[n % (len(c) - 1)][:k]), 400)  # type: ignore[misc]
            line(f"match, {length} blocks, {name}", f"{p50:.1f} / {p99:.1f} us", "", f"p50/p99, {len(index):,} blocks")


def gallop(table: DictTable, question: array[int]) -> int:
    """The longest match of the best lane by bisection: right only where every set is closed under prefixes."""
    get = table._lanes_of.get
    low, high = 0, len(question)
    while low < high:
        middle = (low + high + 1) // 2
        if get(question[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return low


def updates() -> None:
    chains = hashes(1_000_000)
    index = exact_index()
    began = time.process_time()
    for start in range(0, len(chains) - WORKERS, WORKERS):
        for part in range(0, 2_048, DELTA_BLOCKS):
            index.apply([BlockChange(n, 0, chains[start + n][part : part + DELTA_BLOCKS], NONE) for n in range(WORKERS)])
    blocks = len(index)
    rate = blocks / (time.process_time() - began) / 1e6
    line("apply, growing from nothing", f"{rate:.2f} M blocks/s", "", f"{WORKERS} deltas of {DELTA_BLOCKS} a batch, CPU time")
    began = time.process_time()
    for start in range(0, len(chains) - WORKERS, WORKERS):
        for part in range(0, 2_048, DELTA_BLOCKS):
            index.apply([BlockChange(n, 0, NONE, chains[start + n][part : part + DELTA_BLOCKS]) for n in range(WORKERS)])
    line("apply, removals", f"{blocks / (time.process_time() - began) / 1e6:.2f} M blocks/s", "", "the same")


def memory() -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_grow, args=(theirs,), daemon=True)
    process.start()
    at_end, peak, peak_at, worst_ms = ours.recv()
    process.join()
    line(
        "memory at 10 M blocks",
        f"{at_end:.0f} (peak {peak:.0f}) B/block",
        "<= 110",
        f"resident set of a process of its own; peak: on the way from 2.5 M on, at {peak_at / 1e6:.1f} M",
    )
    line(
        "longest change of 2,048 blocks on the way", f"{worst_ms:.1f} ms", "<= 10 ms", "CPU time of the thread, growth included"
    )


def _grow(answer: Connection) -> None:
    """An index of 10 M blocks: bytes a block at the end and at their highest, blocks then, the longest change in ms."""
    index = exact_index()
    generator = np.random.default_rng(3)
    tune_gc()
    before = resident_bytes()
    peak = peak_at = worst_ms = 0.0
    for number in range(0, MEMORY_BLOCKS, 2_048):
        part = array("Q", generator.integers(1, 2**64 - 1, size=2_048, dtype=np.uint64).tobytes())
        began = time.thread_time()
        index.store(number // 2_048 % WORKERS, part)
        worst_ms = max(worst_ms, (time.thread_time() - began) * 1e3)
        a_block = (resident_bytes() - before) / len(index)
        if len(index) > MEMORY_BLOCKS // 4 and a_block > peak:
            peak, peak_at = a_block, len(index)
    for _ in range(1_000):
        index.sweep()
    answer.send(((resident_bytes() - before) / len(index), peak, peak_at, worst_ms))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4_096


def pauses() -> None:
    chains = hashes(1_000_000 + 102_400)
    index = exact_index(WORKERS - 1)
    for number, one in enumerate(chains[50:]):
        index.store(number % (WORKERS - 1), one)
    tune_gc()
    worst = {"join": 0.0, "leave": 0.0, "gc": 0.0}

    def timed(name: str, step: Callable[[], object]) -> None:
        began = time.thread_time()
        step()
        worst[name] = max(worst[name], (time.thread_time() - began) * 1e3)

    for _ in range(3):
        timed("join", lambda: index.attach(100, capacity_blocks=100_000, exact=True))
        for one in chains[:50]:
            timed("join", lambda part=one: index.store(100, part))  # type: ignore[misc]
        timed("leave", lambda: index.detach(100))
        for _ in range(1_000):
            timed("leave", index.sweep)
    timed("gc", gc.collect)
    for name, text in (("join", "a worker of 100,000 blocks joins"), ("leave", "it leaves"), ("gc", "a full collection")):
        line(
            f"longest step while {text}",
            f"{worst[name]:.2f} ms",
            "<= 10 ms",
            "CPU time of the thread, 1 M blocks, after tune_gc()",
        )


# ---------------------------------------------------------------------------------------------------------- with Redis


class Sink:
    def __init__(self) -> None:
        self.slots: dict[str, int] = {}

    def worker_registered(self, record: WorkerRecord, now: float) -> int:
        return self.slots.setdefault(record.worker, len(self.slots))

    def worker_reported(self, report: EngineReport, now: float) -> None:
        pass

    def worker_left(self, worker: str, now: float) -> None:
        pass

    def slots_of(self, worker: str) -> tuple[int, ...]:
        return (self.slots[worker],) if worker in self.slots else ()


class WatchedIndex(PrefixIndex):
    """Notes when (Unix time) each block became visible."""

    def __init__(self) -> None:
        super().__init__()
        self.visible_at: dict[int, float] = {}

    def apply(self, changes: list[BlockChange]) -> None:  # type: ignore[override]
        super().apply(changes)
        now = time.time()
        for change in changes:
            self.visible_at.update(dict.fromkeys(change.added, now))


@contextmanager
def redis_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="hw-") as path:
        server = RedisServer(Path(path))
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


async def register(client: redis.Redis, worker: str, chains: list[array[int]]) -> None:
    """A worker with a snapshot of these blocks."""
    record = WorkerRecord(
        worker=worker,
        url=f"http://{worker}",
        epoch=1,
        models=(ModelCard("m", "m", "m", 1),),
        block_size=16,
        cache_blocks=100_000,
        sends_kv_events=True,
    )
    for number, chain in enumerate(chains):
        data = keyspace.encode_delta(BlockDelta(1, 0, 0.0, chain))
        await client.set(keyspace.snapshot_chunk_key(worker, 1, number), data)
    manifest = SnapshotManifest(
        epoch=1, sequence=0, snapshot_id=1, chunks=len(chains), blocks=sum(map(len, chains)), stream_id="0"
    )
    await client.set(keyspace.snapshot_key(worker), keyspace.encode_manifest(manifest))
    await client.set(keyspace.worker_key(worker), keyspace.encode_worker(record))


async def stream_rate(url: str) -> None:
    client = redis.Redis.from_url(url)
    await client.flushall()
    chains = hashes(2_048 * WORKERS * 12)
    for number in range(WORKERS):
        await register(client, f"w{number}", [])
    sink, index = Sink(), PrefixIndex()
    ingest = Ingest(url, sink, index, SystemClock())
    task = asyncio.create_task(ingest.run())
    await until(lambda: ingest.warm)
    for number in range(WORKERS):
        pipe = client.pipeline(transaction=False)
        sequence = 0
        for chain in chains[number::WORKERS]:
            for start in range(0, 2_048, DELTA_BLOCKS):
                sequence += 1
                data = keyspace.encode_delta(BlockDelta(1, sequence, 0.0, chain[start : start + DELTA_BLOCKS]))
                pipe.xadd(keyspace.blocks_key(f"w{number}"), {keyspace.DELTA_FIELD: data})
        # The reader would take these while we write them: its CPU time is what counts, so it must not share ours.
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pipe.execute()
    wanted = 2_048 * len(chains)
    already = ingest.blocks_applied
    cpu, wall = time.process_time(), time.perf_counter()
    task = asyncio.create_task(ingest.run())
    await until(lambda: ingest.blocks_applied >= wanted)
    blocks = wanted - already
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    value = f"{blocks / cpu / 1e6:.2f} M blocks/s"
    line(
        "Redis into the index",
        value,
        ">= 1.5 M",
        f"entries of {DELTA_BLOCKS}, {WORKERS} streams, CPU time ({blocks / wall / 1e6:.2f} by wall)",
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.aclose()


async def visible_lag(url: str, seconds: float = 3.0, events_per_s: int = 5_000) -> None:
    client = redis.Redis.from_url(url)
    await client.flushall()
    for number in range(WORKERS):
        await register(client, f"w{number}", [])
    sink, index = Sink(), WatchedIndex()
    ingest = Ingest(url, sink, index, SystemClock())
    task = asyncio.create_task(ingest.run())
    await until(lambda: ingest.warm)
    sent: dict[int, float] = {}
    sequences = [0] * WORKERS
    began = time.perf_counter()
    block = 1
    while time.perf_counter() - began < seconds:
        due = int((time.perf_counter() - began) * events_per_s) - len(sent)
        pipe = client.pipeline(transaction=False)
        for _ in range(due):
            number = block % WORKERS
            sequences[number] += 1
            sent[block] = time.time()
            data = keyspace.encode_delta(BlockDelta(1, sequences[number], 0.0, array("Q", [block])))
            pipe.xadd(keyspace.blocks_key(f"w{number}"), {keyspace.DELTA_FIELD: data})
            block += 1
        await pipe.execute()
        await asyncio.sleep(0.001)  # the pace of the writer
    await until(lambda: len(index.visible_at) >= len(sent))
    lags = statistics.quantiles([(index.visible_at[one] - at) * 1e3 for one, at in sent.items()], n=100)
    value = f"{lags[49]:.1f} / {lags[98]:.1f} ms"
    line(
        "event to visible at 5,000/s",
        value,
        "p99 <= 50 ms",
        f"p50/p99, single-block entries, {WORKERS} streams, writer in the same process",
    )
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.aclose()


async def cold_start(url: str) -> None:
    client = redis.Redis.from_url(url)
    await client.flushall()
    chains = hashes(WORKERS * 15 * 2_048)
    for number in range(WORKERS):
        await register(client, f"w{number}", chains[number::WORKERS])
    sink, index = Sink(), PrefixIndex()
    ingest = Ingest(url, sink, index, SystemClock())
    worst_ms = 0.0
    began = time.perf_counter()
    task = asyncio.create_task(ingest.run())
    while not ingest.warm:
        before = time.perf_counter()
        await asyncio.sleep(0)
        worst_ms = max(worst_ms, (time.perf_counter() - before) * 1e3)
    took = time.perf_counter() - began
    assert all(index.state(slot) is IndexState.EXACT for slot in sink.slots.values())
    line(
        f"cold start, {WORKERS} workers x 30,720 blocks",
        f"{took:.2f} s",
        "< 5 s",
        f"to EXACT for all; {len(index) / 1e6:.2f} M blocks",
    )
    line("longest turn of the event loop meanwhile", f"{worst_ms:.1f} ms", "", "wall time between two turns")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.aclose()


def run() -> None:
    """Prints every figure with its target and its method."""
    print("prefix index (one process, wall time unless CPU time is named: on a busy machine the first is noise)")
    lookups()
    updates()
    memory()
    pauses()
    gc.unfreeze()
    with redis_server() as url:
        for part in (stream_rate, visible_lag, cold_start):
            asyncio.run(part(url))


if __name__ == "__main__":
    run()

"""Why a prediction was not what the engine found: its own events, heard beside the agent.

Each block has three times: the engine's stamp of the step that filled it, when its event was here, and when it was in Redis.
Held against the moment of the decision they tell what the router could not know yet from what it got wrong.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import redis
import zmq

from contract import keyspace, tokens
from contract.blocks import chain, extend, pack_tokens, root_hash
from proto import routing_pb2 as pb
from proto import routing_pb2_grpc
from tests.e2e.stack import RunningStack
from tests.vllm.chats import Result
from tests.vllm.engines import TOKENIZER, Engine
from worker_agent.kv_events import CLEARED, REMOVED, STORED, Decoder

BLOCK_TOKENS = 32
MODEL = "tiny"
HEAR_MS = 200
SHOWN_MAX = 20

FALLBACK = "placed without the control plane"
LATE = "event not here yet"
BROKEN = "a guess that did not come true"
AFTER = "the engine's cache changed after the decision"
OTHER = "unexplained"


class Change(NamedTuple):
    """One block appeared (held) or went. Unix seconds."""

    at: float
    heard_at: float
    held: bool


class Tap:
    """Follows one engine's KV events in a thread of its own."""

    def __init__(self, port: int) -> None:
        """port: of the events."""
        self._changes: dict[int, list[Change]] = {}
        self._copies: Counter[int] = Counter()
        self._ours: dict[Any, int] = {}  # engine hash -> block hash
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.setsockopt(zmq.RCVTIMEO, HEAR_MS)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close(linger=0)

    def changes(self, block: int) -> list[Change]:
        return self._changes.get(block, [])

    def held(self, block: int, when: float) -> bool:
        """By the engine's own stamps."""
        return next((change.held for change in reversed(self.changes(block)) if change.at <= when), False)

    def foresight(self, hashes: array[int], prompt_tokens: int, when: float) -> int:
        """Tokens that a router would predict which knew at once what the engine does. It computes at least a prompt's last."""
        blocks = 0
        for block in hashes[: (prompt_tokens - 1) // BLOCK_TOKENS]:
            if not self.held(block, when):
                break
            blocks += 1
        return blocks * BLOCK_TOKENS

    def _listen(self) -> None:
        decoder = Decoder()
        while not self._ended.is_set():
            try:
                _, _, payload = self._socket.recv_multipart()
            except zmq.Again:
                continue
            batch = decoder.decode(payload)
            heard_at = time.time()
            for event in batch.events:
                self._take(event, batch.ts, heard_at)

    def _take(self, event: Any, at: float, heard_at: float) -> None:
        if isinstance(event, STORED):
            root = root_hash(MODEL)
            parent = root if event.parent_block_hash is None else self._ours.get(event.parent_block_hash, 0)
            for number, engine_hash in enumerate(event.block_hashes):
                start = number * event.block_size
                parent = extend(parent, pack_tokens(event.token_ids[start : start + event.block_size]))
                self._ours[engine_hash] = parent
                self._count(parent, 1, at, heard_at)
        elif isinstance(event, REMOVED):
            for engine_hash in event.block_hashes:
                if engine_hash in self._ours:
                    self._count(self._ours[engine_hash], -1, at, heard_at)
        elif isinstance(event, CLEARED):
            for block, copies in list(self._copies.items()):
                self._count(block, -copies, at, heard_at)

    def _count(self, block: int, copies: int, at: float, heard_at: float) -> None:
        before = self._copies[block]
        self._copies[block] += copies
        if (before > 0) != (self._copies[block] > 0):
            self._changes.setdefault(block, []).append(Change(at, heard_at, not before > 0))


class Finding(NamedTuple):
    """One request that was not predicted to the block."""

    cause: str
    said: str


class Witness:
    """Both engines' events while requests go on, and what they say of each afterwards."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """Before their first request: events name the block before by a hash that must have been heard."""
        self._taps = {f"worker-{number}": Tap(engine.port + 1000) for number, engine in enumerate(engines, 1)}
        self._tokenizer = tokens.load(str(TOKENIZER))

    def close(self) -> None:
        for tap in self._taps.values():
            tap.close()

    def judge(self, results: Sequence[Result], stack: RunningStack) -> tuple[list[Finding], int]:
        """What was wrong and why; and how many a router would have got right that knows at once what an engine does."""
        findings: list[Finding] = []
        foreseen = 0
        arrived = {worker: _arrivals(stack, worker) for worker in self._taps}
        with grpc.insecure_channel(stack.control) as channel:
            stub = routing_pb2_grpc.RoutingStub(channel)
            for number, result in enumerate(results):
                when = result.sent_at
                if result.decision_id:
                    when = stub.Explain(pb.ExplainRequest(decision_id=result.decision_id), timeout=5).decided_at
                (prompt,) = self._tokenizer.prompts("/v1/chat/completions", result.body)
                hashes = chain(prompt, BLOCK_TOKENS, root_hash(MODEL))
                foresight = self._taps[result.worker].foresight(hashes, result.prompt_tokens, when)
                foreseen += foresight == result.cached
                if result.predicted != result.cached:
                    cause = _cause(result, foresight)
                    blocks = " ".join(self._times(result, hashes, when, arrived[result.worker]))
                    said = f"#{number} {cause}: predicted {result.predicted}, found {result.cached}, foreseeable {foresight}, "
                    said += f"prompt {result.prompt_tokens} tokens, {result.worker}, "
                    findings.append(
                        Finding(cause, said + f"decided {(when - result.sent_at) * 1e3:.0f} ms after it was sent; {blocks}")
                    )
        return findings, foreseen

    def _times(self, result: Result, hashes: array[int], when: float, arrived: dict[int, list[float]]) -> Iterator[str]:
        """Of the blocks in question, ms relative to the decision."""
        low, high = sorted((result.predicted // BLOCK_TOKENS, result.cached // BLOCK_TOKENS))
        for number in range(low, min(high, len(hashes))):
            block = hashes[number]
            said = []
            for change in self._taps[result.worker].changes(block):
                at, heard = (change.at - when) * 1e3, (change.heard_at - when) * 1e3
                said.append(f"{'filled' if change.held else 'gone'} {at:+.0f} heard {heard:+.0f}")
            said += [f"in Redis {(at - when) * 1e3:+.0f}" for at in arrived.get(block, ())]
            yield f"block {number}: {', '.join(said) or 'never announced'} ms;"


def _arrivals(stack: RunningStack, worker: str) -> dict[int, list[float]]:
    """Block hash -> when deltas that add it came to Redis, Unix seconds."""
    found: dict[int, list[float]] = {}
    with redis.Redis.from_url(stack.facts()["redis_url"]) as client:
        entries: Any = client.xrange(keyspace.blocks_key(worker))
    for entry_id, fields in entries:
        for block in keyspace.decode_delta(fields[keyspace.DELTA_FIELD]).added:
            found.setdefault(block, []).append(int(entry_id.partition(b"-")[0]) / 1000)
    return found


def _cause(result: Result, foresight: int) -> str:
    if not result.decision_id:
        return FALLBACK
    if foresight == result.cached:
        return LATE if result.predicted < result.cached else BROKEN
    return AFTER if foresight == result.predicted else OTHER


def told(results: Sequence[Result], findings: Sequence[Finding], foreseen: int) -> str:
    """A few lines: how many were predicted to the block, why the others were not, and the first of those."""
    requests, wrong = len(results), len(findings)
    over = sum(result.predicted > result.cached for result in results)
    fallbacks = sum(not result.decision_id for result in results)
    cached = sum(result.cached for result in results)
    lines = [
        f"{requests} requests, {1 - wrong / requests:.2%} predicted to the block ({wrong - over} below, {over} above);",
        f"{fallbacks} placed by the fallback; if events took no time: {foreseen / requests:.2%};",
        f"{cached:,} tokens cached, {dict(Counter(result.worker for result in results))};",
        f"causes: {dict(Counter(finding.cause for finding in findings))}",
    ]
    return "\n  ".join(lines + [finding.said for finding in findings[:SHOWN_MAX]])

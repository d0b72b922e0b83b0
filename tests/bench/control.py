"""What the control plane executes for a request, without a socket: user instructions and CPU of one thread.

Method: messages as a data plane packs them, QUESTIONS questions each and as many outcomes of the message LAG before, fed into a
line of the servicer (contract.frames), which answers each; prompts of a few blocks of 16 tokens, each different, chains
included; records thinned to 2,000 a second of 25,000; workers report ten times a second. calls: what cProfile counts,
built-in functions included. Two kinds of traffic:

    whole      answers in one piece, workers without KV events, as in `headway bench proxy --scenarios small`
    streamed   a first token a request, KV events on, the engine says what it found in its cache

And a model of TTFT (trained here, as `make bench ARGS=decision` does) that `predictive` decides by: asked for prompts of one
length and of LENGTHS; where no worker has shown its speed yet it is not asked.
"""

from __future__ import annotations

import cProfile
import ctypes
import os
import platform
import pstats
import struct
import time
from asyncio import Transport
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from contract.frames import VERSION as LINE_VERSION
from contract.frames import frame
from contract.outcome import End, Outcome
from contract.routing import VERSION as PACKED_VERSION
from contract.routing import Asked, Ended, Request, Said, pack
from controlplane.admission import WaitingRoom
from controlplane.breaker import BreakerBounds
from controlplane.explain import DecisionRing
from controlplane.fleet_view import FleetWatch
from controlplane.index_state import IndexState
from controlplane.ledger import Ledger
from controlplane.line import Line
from controlplane.predictor import Forecaster, Predictor
from controlplane.prefix_index import PrefixIndex, tune_gc
from controlplane.profiles import build
from controlplane.rankers import LeastPredicted
from controlplane.self_check import SelfCheck
from controlplane.servicer import RoutingServicer, _Stream
from controlplane.snapshot import FleetSnapshot
from controlplane.thinning import PER_S_MAX, Thinning
from controlplane.usual import UsualDirector
from proto import routing_pb2 as pb
from runtime.clock import ManualClock
from tests.bench import _scoring
from tests.controlplane.parts import BLOCK, MODEL, hashes, record, report
from trainer.train import train

WORKERS = 4
QUESTIONS = 16
LAG = 3
PER_S = 25_000
PROMPTS = 20_000
BLOCKS = 3
TOKENS = 56
CACHE_BLOCKS = 27_000
MESSAGES = 1_500
ROUNDS = 3
WARM_MESSAGES = 3_000
PROFILED = 200
LENGTHS = 400
SPEED = 5_000.0
"""Prefill tokens a second, where workers have shown theirs."""
POLICIES = (
    *("round_robin", "prefix", "weighted", "cache_aware", "kv_cost", "lmetric"),
    *("predictive", "linear_online", "hierarchical"),
)


class _Wire(Transport):
    """Where answers go."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.frames += 1

    def abort(self) -> None:
        raise AssertionError("the line was closed")


class _Context:
    def peer(self) -> str:
        return "unix:"


class Bench:
    """A control plane without sockets and the messages for it. kind: see above; model: of TTFT, None: none serves; lengths: of
    prompts that are not the same; speed: that all workers have shown, 0: none. Decisions are numbered one after the other, so
    that the outcomes of a message can be packed before it is answered."""

    def __init__(
        self,
        policy: str,
        kind: str,
        *,
        workers: int = WORKERS,
        model: Predictor | None = None,
        lengths: int = 1,
        speed: float = 0.0,
    ) -> None:
        self.kind, self.workers, self.lengths = kind, workers, lengths
        predicted = LeastPredicted(Forecaster(model, "bench"))
        self.clock = ManualClock(100.0)
        ledger = Ledger()
        self.snapshot = FleetSnapshot(ledger, BreakerBounds())
        index = PrefixIndex()
        self.records: list[Outcome] = []
        ring = DecisionRing()
        self.director = UsualDirector(
            snapshot=self.snapshot,
            ledger=ledger,
            index=index,
            waiting=WaitingRoom(),
            ring=ring,
            self_check=SelfCheck(),
            profiles=build(predicted=predicted),
            policy=policy,
            rng=Random(1),
            record=self.records.append,
            unix_offset_s=0.0,
            thinning=Thinning(PER_S_MAX),
            settle_s=0.25 if kind == "streamed" else 0.0,
            predicted=predicted,
        )
        self.director.warm = True
        self.index = index
        events = kind == "streamed"
        for number in range(workers):
            worker = record(f"w{number}", cache_blocks=CACHE_BLOCKS, sends_kv_events=events)
            slot = self.snapshot.worker_registered(worker, 100.0)
            index.attach(slot, capacity_blocks=CACHE_BLOCKS, exact=events)
            if events:
                index.set_state(slot, IndexState.EXACT)
        for endpoint in self.snapshot.endpoints():
            endpoint.rates.prefill_tokens_per_s = speed
        rng = Random(2)
        self.prompts = [hashes(*(rng.getrandbits(64) for _ in range(BLOCKS))) for _ in range(PROMPTS)]
        if events:
            for prompt in self.prompts:
                index.store(rng.randrange(workers), prompt)
        routing = RoutingServicer(self.director, ring, FleetWatch(self.snapshot, self.director, first_version=1), self.clock)
        hello = pb.Hello(process="dp", packed_version=PACKED_VERSION, line_version=LINE_VERSION, queue_notices=True)
        stream = _Stream(hello, _Context())  # type: ignore[arg-type]
        routing._streams[stream.owner] = stream
        self.routing = routing
        self.line = Line(routing.claim_line)
        self.wire = _Wire()
        self.line.connection_made(self.wire)
        self.line.data_received(frame(stream.line_key))
        self.said = 0

    def messages(self, count: int) -> list[bytes]:
        """The next ones, as bytes of the line."""
        return [self._message(number) for number in range(self.said, self.said + count)]

    def _message(self, number: int) -> bytes:
        chained = self.director.needs_chains
        streamed = self.kind == "streamed"
        questions, ended = [], []
        for place in range(QUESTIONS):
            asked = number * QUESTIONS + place
            chains = ((BLOCK, self.prompts[asked % PROMPTS].tobytes()),) if chained else ()
            wanted = Request(
                model=MODEL,
                input_tokens=TOKENS + asked % self.lengths,
                exact_tokens=chained,
                max_tokens=128 if streamed else 0,
                request_id=f"{asked:032x}",
                streams=streamed,
            )
            questions.append(Asked(asked + 1, wanted, chains))
        last = max(0, number + 1 - LAG) * QUESTIONS
        before = range(max(0, last - QUESTIONS) + 1, last + 1)
        for decision_id in before:
            usual = {"end": int(End.COMPLETE), "http_status": 200, "e2e_s": 0.0025, "request_id": f"{decision_id - 1:032x}"}
            if streamed:
                usual |= {"ttft_s": 0.001, "itl_s": 0.0001, "streamed": True, "cached_tokens": BLOCK * BLOCKS}
                usual |= {"output_tokens": 40, "prompt_tokens": TOKENS}
            else:
                usual |= {"output_tokens": 1, "prompt_tokens": 5}
            ended.append(Ended(decision_id=decision_id, **usual))  # type: ignore[arg-type]
        first_bytes = [(decision_id, 0.001) for decision_id in before] if streamed else []
        return frame(pack(Said(questions, first_bytes, ended)))

    def say(self, messages: list[bytes]) -> None:
        """One after the other, with the time that passes between them."""
        data_received, clock, step_s = self.line.data_received, self.clock, QUESTIONS / PER_S
        answered = self.wire.frames
        every = int(0.1 / step_s)
        for number, message in enumerate(messages):
            clock.advance(step_s)
            if number % every == 0:
                self._report()
            data_received(message)
        self.said += len(messages)
        assert self.wire.frames - answered == len(messages), "every message is answered at once"

    def _report(self) -> None:
        now = self.clock.now()
        self.records.clear()
        self.index.expire(now)
        for number in range(self.workers):
            self.snapshot.worker_reported(report(f"w{number}", generation_tokens=int(1000 * now)), now)


class Counter:
    """User instructions of this thread; 0 where the machine does not count them."""

    def __init__(self) -> None:
        self._fd = -1
        number = {"x86_64": 298, "aarch64": 241}.get(platform.machine())
        if number is None:
            return
        # struct perf_event_attr: type HARDWARE, its size, config INSTRUCTIONS; flags: exclude kernel and hypervisor
        attr = struct.pack("<IIQQQQQ", 0, 128, 1, 0, 0, 0, 1 << 5 | 1 << 6).ljust(128, b"\0")
        self._fd = ctypes.CDLL(None, use_errno=True).syscall(number, attr, 0, -1, -1, 0)

    def read(self) -> int:
        return int.from_bytes(os.read(self._fd, 8), "little") if self._fd >= 0 else 0


@contextmanager
def _counted(counter: Counter, into: list[tuple[float, float]]) -> Iterator[None]:
    cpu, before = time.thread_time(), counter.read()
    yield
    after = counter.read()
    into.append((after - before, time.thread_time() - cpu))


def _calls(bench: Bench) -> float:
    messages = bench.messages(PROFILED)
    profile = cProfile.Profile()
    profile.runcall(bench.say, messages)
    return pstats.Stats(profile).total_calls / (PROFILED * QUESTIONS)  # type: ignore[attr-defined]


def measure(bench: Bench, counter: Counter) -> tuple[float, float, float]:
    """Instructions, CPU in microseconds and calls a request, the least of the rounds."""
    bench.say(bench.messages(WARM_MESSAGES))
    figures: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        messages = bench.messages(MESSAGES)
        with _counted(counter, figures):
            bench.say(messages)
    requests = MESSAGES * QUESTIONS
    instructions = min(instructions for instructions, _ in figures) / requests
    return instructions, min(cpu for _, cpu in figures) / requests * 1e6, _calls(bench)


def run() -> None:
    tune_gc()
    counter = Counter()
    print(f"the control plane alone, {WORKERS} workers, {QUESTIONS} questions and outcomes a message, {BLOCKS} blocks a prompt")
    for kind in ("whole", "streamed"):
        for policy in POLICIES:
            _print(f"{kind:9} {policy:13}", measure(Bench(policy, kind), counter))
    model = train(_scoring.traffic(), kind="lightgbm", model_id="bench", seed=1, now_unix=0.0).predictor
    for workers in (WORKERS, 2 * WORKERS):
        for what, lengths, speed in (
            ("no speed known", 1, 0.0),
            ("one length", 1, SPEED),
            (f"{LENGTHS} lengths", LENGTHS, SPEED),
        ):
            bench = Bench("predictive", "whole", workers=workers, model=model, lengths=lengths, speed=speed)
            _print(f"whole     predictive by a model, {workers} workers, {what:14}", measure(bench, counter))


def _print(what: str, figures: tuple[float, float, float]) -> None:
    instructions, cpu_us, calls = figures
    print(f"  {what} {instructions:8,.0f} instructions  {cpu_us:5.1f} us CPU  {calls:4.0f} calls a request")


if __name__ == "__main__":
    run()

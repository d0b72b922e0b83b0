"""What one routing decision costs: in the director alone, and over a real RouteStream."""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from contract.keyspace import WorkerRecord
from contract.outcome import End
from controlplane.prefix_index import tune_gc
from controlplane.profiles import NAMES
from controlplane.question import Decision, Ended, Question, Request
from proto import routing_pb2 as pb
from tests.bench import _scoring
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes
from tests.controlplane.served import serve

BLOCKS = 64
DECISIONS = 2_000
ROUNDS = 5
CONVERSATIONS = 200


def _plant(workers: int, policy: str) -> tuple[Plant, list[Question]]:
    """A fleet with CONVERSATIONS prompts of BLOCKS blocks, each held by one worker, and a few dozen requests under way."""
    plant = Plant(workers, policy=policy, waiting_max=0)
    rng = Random(1)
    questions = []
    for number in range(CONVERSATIONS):
        prompt = hashes(*(number * 10_000 + block for block in range(BLOCKS)))
        plant.index.store(rng.randrange(workers), prompt)
        questions.append(
            Question(Request(model=MODEL, input_tokens=BLOCK * BLOCKS + 5, request_id=f"r{number}"), {BLOCK: prompt})
        )
    for number in range(8 * workers):
        plant.place(questions[number % CONVERSATIONS], question_id=1_000_000 + number)
    return plant, questions


def _quantiles(samples: list[float]) -> str:
    samples.sort()
    return f"p50 {1e6 * samples[len(samples) // 2]:6.1f} us   p99 {1e6 * samples[int(0.99 * len(samples))]:6.1f} us"


def _time(plant: Plant, questions: list[Question], ask: Callable[[Question, int], object]) -> list[float]:
    samples = []
    for number in range(DECISIONS):
        question = questions[number % CONVERSATIONS]
        began = time.perf_counter()
        result = ask(question, number)
        samples.append(time.perf_counter() - began)
        if isinstance(result, Decision) and result.decision_id:
            plant.director.ended(Ended(decision_id=result.decision_id, end=End.COMPLETE), plant.now)
            plant.outcomes.clear()
    return samples


class _NoIndex:
    """What a decision costs beside the index."""

    def match(self, hashes: object, live_mask: int | None = None) -> dict[int, int]:
        return {0: BLOCKS // 2}

    def speculate(self, slot: int, hashes: object, now: float) -> None: ...

    @property
    def claims(self) -> dict[int, int]:
        return {}

    awaited = float("-inf")
    generation = 0

    def claim_judged(self, *, came_true: bool) -> None: ...

    def answered(self, slot: int, last_block: int, prompt_blocks: int, filled_blocks: int, now: float) -> None: ...

    def detach(self, slot: int) -> None: ...


def _core(workers: int, policy: str, *, index: bool = True) -> str:
    best: list[float] = []
    for _ in range(ROUNDS):
        plant, questions = _plant(workers, policy)
        if not index:
            plant.director._index = _NoIndex()
        samples = _time(plant, questions, lambda asked, number, plant=plant: plant.ask(asked, question_id=number))  # type: ignore[misc]
        if not best or sorted(samples)[DECISIONS // 2] < sorted(best)[DECISIONS // 2]:
            best = samples
    return _quantiles(best)


def _end(workers: int) -> str:
    plant, questions = _plant(workers, "lmetric")
    samples = []
    for number in range(DECISIONS):
        decision = plant.place(questions[number % CONVERSATIONS], question_id=number)
        began = time.perf_counter()
        plant.end(decision, ttft_s=0.1, cached_tokens=100)
        samples.append(time.perf_counter() - began)
        plant.outcomes.clear()
    return _quantiles(samples)


async def _stream(in_flight: int, workers: int = 8) -> str:
    """One process that plays data plane and control plane: the CPU figure is that of both ends together."""
    with tempfile.TemporaryDirectory(prefix="hw-") as directory:
        async with serve(Path(directory), workers=workers, waiting_max=0) as served:
            assert isinstance(served.plant.endpoint().record, WorkerRecord)
            prompts = [
                hashes(*(number * 10_000 + block for block in range(BLOCKS))).tobytes() for number in range(CONVERSATIONS)
            ]
            stream = served.stream()
            decided: list[pb.Outcome] = []
            asked = 0
            latencies = []
            began, cpu = time.perf_counter(), _cpu_s()
            while asked < max(4_000, 20 * in_flight) and time.perf_counter() - began < 4.0:
                batch = [
                    pb.Question(
                        question_id=asked + number,
                        model=MODEL,
                        input_tokens=BLOCK * BLOCKS + 5,
                        chains=[pb.BlockChain(block_size=BLOCK, hashes=prompts[(asked + number) % CONVERSATIONS])],
                        chain_kind=pb.TOKENS,
                    )
                    for number in range(in_flight)
                ]
                sent = time.perf_counter()
                await stream.send(*batch, outcomes=tuple(decided))
                decisions = await stream.receive()
                latencies.append(time.perf_counter() - sent)
                decided = [pb.Outcome(decision_id=decision.decision_id, end=pb.COMPLETE) for decision in decisions]
                served.plant.outcomes.clear()
                asked += in_flight
            wall, spent = time.perf_counter() - began, _cpu_s() - cpu
            stream.break_off()
            per_message = _quantiles(latencies)
            return f"{asked / wall:8,.0f} questions/s   {1e6 * spent / asked:6.1f} CPU us each   a message: {per_message}"


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run() -> None:
    tune_gc()
    print(
        f"Director.ask: {BLOCKS} block hashes a question, {CONVERSATIONS} prompts known to one worker each, 8 requests\n"
        f"active per worker; reserved, speculated, remembered; {DECISIONS} decisions, the best of {ROUNDS} runs by median."
    )
    for workers in (8, 64):
        print(f"  {workers:3} workers, lmetric            {_core(workers, 'lmetric')}")
        print(f"  {workers:3} workers, lmetric, no index  {_core(workers, 'lmetric', index=False)}")
    for policy in NAMES:
        print(f"    8 workers, {policy:18} {_core(8, policy)}")
    print("Director.ended, outcome record included, 8 workers:")
    print(f"               {_end(8)}")
    print("RouteStream on a Unix socket, both ends in one process (CPU of both), outcomes riding along, 8 workers, lmetric:")
    for in_flight in (1, 8, 64):
        print(f"  {in_flight:3} questions a message   {asyncio.run(_stream(in_flight))}")
    _scoring.run()


if __name__ == "__main__":
    run()

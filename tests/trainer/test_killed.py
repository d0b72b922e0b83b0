"""kill -9 at every step of a trainer's life, on a real Redis, with outcomes coming in all the while.

One directory and one Redis go through all deaths, as they would in production: each process goes on with what the one before
left. After each death the disk and Redis are looked at as they were left, before the next process tidies up.
"""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import redis

from contract import keyspace, outcome
from prediction import bundle, dataset, predictor
from proto import fleet_pb2_grpc, routing_pb2, routing_pb2_grpc, trainer_pb2
from tests.controlplane.parts import MODEL
from tests.controlplane.test_process import Agent, dialled, listed, started
from tests.trainer.doomed import STEPS
from tests.trainer.process import connected, feed, running, until
from tests.trainer.test_service import count, state
from tests.trainer.traffic import RATE, START, outcomes
from trainer.durable import TEMPORARY
from trainer.registry import MANIFEST_FILE, STATE_FILE, State, _state

HASTY = {
    "kind": "linear",
    "samples_min": 400,
    "new_samples_min": 100,
    "train_every_s": 0.1,
    "train_pause_s": 0.05,
    "shadow_samples": 50,
    "watch_samples": 50,
    "models_max": 3,
    "recent_max": 500,
    "kept_max": 100_000,
    "flush_s": 0.02,
}
"""Everything that may happen in a life happens within seconds."""
AT_ONCE = 100


@dataclass
class Source:
    """Outcomes without end, numbered from 1. Answers get slower and faster again, so that models come and go."""

    redis_url: str
    fed: int = 0
    deaths: list[str] = field(default_factory=list)

    def feed(self) -> None:
        number = self.fed // AT_ONCE
        slower = 1.0 + 0.5 * (number // 8 % 2)
        feed(self.redis_url, outcomes(AT_ONCE, number, first_id=1 + self.fed, at=START + self.fed / RATE, slower=slower))
        self.fed += AT_ONCE


def look_at_disk(directory: Path, fed: int) -> State:
    """What a process that was killed has left: every model and every segment that is there is whole."""
    models = directory / "models"
    whole = set()
    for path in models.iterdir() if models.is_dir() else ():
        if path.is_dir() and not path.name.startswith(TEMPORARY):
            manifest = bundle.read_manifest((path / MANIFEST_FILE).read_bytes())
            files = {name: (path / name).read_bytes() for name in manifest.files}
            predictor.load(bundle.verified(manifest, files))
            whole.add(path.name)
    found = State()
    if (models / STATE_FILE).exists():
        found = _state.decode((models / STATE_FILE).read_bytes())
        assert {found.serving, found.previous, found.shadow} - {""} <= whole
    for path in (directory / "samples").glob("*.parquet"):
        if not path.name.startswith(TEMPORARY):
            ids = pq.read_table(path).column("decision_id").to_pylist()
            assert len(set(ids)) == len(ids)
            assert not ids or 1 <= min(ids) <= max(ids) <= fed
    return found


def look_at_redis(redis_url: str) -> int:
    """What control planes would load now: every model that is named is there, whole. Returns the state's number."""
    told = state(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        for model_id in filter(None, (told.serving, told.previous, told.shadow)):
            data = client.get(keyspace.model_key(model_id))
            assert isinstance(data, bytes), f"{model_id} is named and not there"
            assert bundle.decode(data).manifest.model_id == model_id
            predictor.load(bundle.decode(data))
    return told.sequence


async def somebody_promotes(directory: Path) -> None:
    """By hand, whatever is there and does not serve: so that models come and go on Redis, too."""
    async with connected(directory) as stub:
        with contextlib.suppress(grpc.aio.AioRpcError):
            listed = await stub.ListModels(trainer_pb2.ListModelsRequest(), timeout=1)
            idle = [model.model_id for model in listed.models if model.state != trainer_pb2.SERVING]
            if idle:
                await stub.Promote(trainer_pb2.PromoteRequest(model_id=idle[-1], force=True), timeout=1)


async def until_dead(source: Source, directory: Path, step: str, number: int) -> None:
    """A trainer that is killed there, while outcomes come."""
    with running(directory, source.redis_url, module=("tests.trainer.doomed", step, str(number)), **HASTY) as process:

        async def dead() -> bool:
            source.feed()
            if source.fed % (4 * AT_ONCE) == 0:
                await somebody_promotes(directory)
            return process.poll() is not None

        await until(f"{step}, {number} times", dead)
        assert process.returncode == -signal.SIGKILL, (directory / "log").read_text()[-3_000:]
    source.deaths.append(f"{step} {number}")


async def whole_again(source: Source, directory: Path) -> None:
    """A trainer that is left alone has every sample once, and serves or tries a model."""
    with running(directory, source.redis_url, **HASTY):
        async with connected(directory) as stub:

            async def all_there() -> bool:
                return await count(stub) == source.fed

            await until(f"all {source.fed} samples are there, once", all_there)
            listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
            assert listed.models
    kept = dataset.read(directory / "data" / "samples")
    assert sorted(set(kept.table.column("decision_id").to_pylist())) == list(range(1, source.fed + 1)), source.deaths


async def deaths(short_dir: Path, redis_url: str, plan: list[tuple[str, int]]) -> Source:
    source = Source(redis_url)
    sequence = 0
    for step, number in plan:
        await until_dead(source, short_dir, step, number)
        look_at_disk(short_dir / "data", source.fed)
        now = look_at_redis(redis_url)
        assert now >= sequence, "control planes would not believe an older state"
        sequence = now
    await whole_again(source, short_dir)
    return source


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_at_each_named_step_it_loses_no_sample_and_leaves_no_half_model(short_dir: Path, redis_url: str) -> None:
    source = await deaths(short_dir, redis_url, [(step, 1) for step in STEPS])
    assert len(source.deaths) == len(STEPS)
    assert state(redis_url).sequence > 5


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_killed_at_random_steps_it_loses_no_sample_and_leaves_no_half_model(short_dir: Path, redis_url: str) -> None:
    rng = np.random.default_rng(5)
    plan = [("any", int(number)) for number in rng.integers(1, 250, 10)]
    await deaths(short_dir, redis_url, plan)
    assert len({number for _, number in plan}) > 7


async def test_an_outcome_is_on_disk_or_on_redis_from_the_moment_it_is_written(short_dir: Path, redis_url: str) -> None:
    """Killed with everything still in memory: the next process reads it from Redis again."""
    with running(short_dir, redis_url, **(HASTY | {"flush_s": 3_600, "samples_min": 1_000_000})) as process:
        feed(redis_url, outcomes(300, 1))
        async with connected(short_dir) as stub:

            async def taken() -> bool:
                return await count(stub) == 300

            await until("all are in memory", taken)
        process.kill()
        process.wait()
    assert not list((short_dir / "data" / "samples").glob("*.parquet"))
    with running(short_dir, redis_url, **(HASTY | {"samples_min": 1_000_000})):
        async with connected(short_dir) as stub:

            async def again() -> bool:
                return await count(stub) == 300

            await until("all are there again", again)


async def test_a_killed_control_plane_loses_no_outcome_older_than_a_second(short_dir: Path, redis_url: str) -> None:
    agent = Agent(redis_url)
    agent.register()
    ended_at: dict[str, float] = {}
    killed_at: list[float] = []
    for life in range(3):
        settings = ("--redis-url", redis_url, "--metrics-port", "0", "--outcomes-per-s-max", "0")  # none are thinned
        with started(f"unix:{short_dir}/cp{life}.sock", *settings) as control:
            async with dialled(control) as channel:
                await listed(fleet_pb2_grpc.FleetStub(channel), (agent,), 1)  # type: ignore[arg-type]
                route = routing_pb2_grpc.RoutingStub(channel)
                now: list[float] = []
                while sum(at < time.monotonic() - 1.0 for at in now) < 10 + 5 * life:
                    name = f"{life}-{len(ended_at)}"
                    asked = routing_pb2.Question(question_id=1, model=MODEL, input_tokens=100, request_id=name)
                    decision = await route.Route(routing_pb2.RouteRequest(question=asked, reserve=True))
                    said = routing_pb2.Outcome(
                        decision_id=decision.decision_id, end=routing_pb2.COMPLETE, ttft_s=0.1, e2e_s=0.2, streamed=True
                    )
                    await route.Report(said)
                    ended_at[name] = time.monotonic()
                    now.append(ended_at[name])
                control.process.kill()
                killed_at.append(time.monotonic())
                control.process.wait()
    agent.close()
    with redis.Redis.from_url(redis_url) as client:
        entries = client.xrange(keyspace.OUTCOMES)
    kept = {outcome.decode(fields[keyspace.OUTCOME_FIELD]).request_id for _, fields in entries}  # type: ignore[union-attr]
    old = [name for name, at in ended_at.items() if at < killed_at[int(name[0])] - 1.0]
    assert len(old) >= 10 + 15 + 20
    assert set(old) <= kept

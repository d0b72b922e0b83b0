"""A trainer as a process of its own, and a Redis that is fed like a control plane feeds it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import redis

from contract import keyspace, outcome
from contract.outcome import Outcome
from proto import trainer_pb2_grpc
from tests import waiting

PATIENCE_S = 60.0

QUICK = {
    "samples_min": 1_000,
    "new_samples_min": 200,
    "train_every_s": 3_600,
    "train_pause_s": 0.5,
    "shadow_samples": 300,
    "watch_samples": 200,
    "flush_s": 0.5,
}


@contextlib.contextmanager
def running(
    directory: Path, redis_url: str, *, module: tuple[str, ...] = ("trainer",), **settings: object
) -> Iterator[subprocess.Popen[str]]:
    """Ended by SIGTERM, if it has not ended by itself; its log is in `directory`/log. module: what is run, with what comes
    before the flags."""
    flags = {"metrics_port": 0, **QUICK, **settings}
    command = [
        *(sys.executable, "-m", *module, "--listen", target(directory), "--redis-url", redis_url),
        *("--data-dir", str(directory / "data")),
        *(part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))),
    ]
    with (directory / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env={**os.environ})
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=PATIENCE_S) == 0, (directory / "log").read_text()


def target(directory: Path) -> str:
    return f"unix:{directory}/trainer.sock"


@contextlib.asynccontextmanager
async def connected(directory: Path):  # type: ignore[no-untyped-def]
    async with grpc.aio.insecure_channel(target(directory)) as channel:
        yield trainer_pb2_grpc.TrainerStub(channel)


def feed(redis_url: str, outcomes: list[Outcome]) -> None:
    with redis.Redis.from_url(redis_url) as client, client.pipeline(transaction=False) as pipeline:
        for one in outcomes:
            pipeline.xadd(keyspace.OUTCOMES, {keyspace.OUTCOME_FIELD: outcome.encode(one)})
        pipeline.execute()


async def until(what: str, look: Callable[[], Awaitable[bool]]) -> None:
    """Looks until it is so; a trainer that is not there is no answer. AssertionError: not within PATIENCE_S."""

    async def looked() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await look()
        return False

    await waiting.until(looked, what, seconds_max=PATIENCE_S, poll_s=waiting.ELSEWHERE_POLL_S)

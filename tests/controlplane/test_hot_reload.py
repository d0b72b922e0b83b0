"""Models of the size that serves come and go while decisions flow over gRPC: none is dropped, the loop never stands still, and
a broken bundle leaves the model before it in place."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis.asyncio

from contract import keyspace
from contract.features import FEATURES, INDEX, VERSION
from contract.keyspace import ModelsState
from controlplane import profiles
from controlplane.model_store import ModelStore
from controlplane.predictor import RECENT_MAX, Forecaster, Sample
from controlplane.prefix_index import tune_gc
from controlplane.rankers import LeastPredicted
from prediction import bundle, calibration
from prediction.bundle import Bundle
from runtime.clock import SystemClock
from tests.controlplane.parts import candidate
from tests.controlplane.served import asked, serve
from tests.waiting import turns
from trainer.zoo import boosted
from trainer.zoo.kind import Training

STALL_S_MAX = 0.010
TOGETHER = 8
MODELS = 6


def trained(seed: int) -> dict[str, bytes]:
    """Files of a LightGBM model as large as those that serve."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((4_000, len(FEATURES)))
    rows[:, INDEX["input_tokens"]] = rows[:, INDEX["uncached_tokens"]] = rng.integers(16, 4_000, len(rows))
    rows[:, INDEX["active"]] = rng.integers(0, 20, len(rows))
    rows[:, INDEX["prefill_tokens"]] = rng.integers(0, 20_000, len(rows))
    ttft_s = 0.02 + rows[:, INDEX["prefill_tokens"]] / 8_000 * rng.lognormal(0.0, 0.3, len(rows))
    training = Training(rows, ttft_s, np.arange(len(rows), dtype=np.float64), np.full(len(rows), "w0", dtype=object))
    return boosted.fit(training, seed, lambda _: None)


def bundled(model_id: str, files: dict[str, bytes]) -> Bundle:
    return bundle.build(
        model_id=model_id,
        kind="lightgbm",
        feature_version=VERSION,
        features=FEATURES,
        trained_at=0.0,
        samples=4_000,
        seed=1,
        files=files | {calibration.FILE: calibration.Calibration().encode()},
    )


class Heart:
    """Beats with every turn of the loop. stall_s: the most CPU time of the loop's own thread between two beats: what one
    callback may cost is a matter of this process, how long it had to wait for a core is not."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        self.beats = 0

    async def beat(self) -> None:
        before = time.thread_time()
        while True:
            await turns()
            now = time.thread_time()
            self.stall_s = max(self.stall_s, now - before)
            self.beats += 1
            before = now


async def put(client: redis.asyncio.Redis, sequence: int, model_id: str, packed: bytes) -> None:
    await client.set(keyspace.model_key(model_id), packed)
    await client.set(keyspace.MODELS_STATE, keyspace.encode_models(ModelsState(sequence=sequence, serving=model_id)))


@pytest.fixture
def as_a_process() -> Iterator[None]:
    """The garbage collector as a control plane sets it: else a full collection of all that the tests have loaded may be found
    in the loop, tens of milliseconds by chance."""
    before = gc.get_threshold()
    tune_gc()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("as_a_process")
async def test_models_are_replaced_under_load_without_a_dropped_or_a_slow_decision(redis_url: str, tmp_path: Path) -> None:
    files = trained(1)
    forecaster = Forecaster()
    row = candidate(input_tokens=500)
    forecaster.learn([Sample(row, 0.1, row.endpoint.record)] * RECENT_MAX)
    ranker = LeastPredicted(forecaster)
    built = profiles.build(predicted=ranker)
    store = ModelStore(redis_url, forecaster, SystemClock(), poll_s=0.005)
    heart = Heart()
    names = [f"m-{number}" for number in range(MODELS)]
    broken = {"m-1": bundle.encode(bundled("m-1", files))[:-100], "m-3": b"\x00" * 1_000}
    async with (
        serve(tmp_path, workers=8, policy="predictive", profiles=built) as served,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        following, beating = asyncio.create_task(store.run()), asyncio.create_task(heart.beat())
        stream = served.stream()
        questions = 0
        for sequence, name in enumerate(names, 1):
            refused = store.refusals
            before = store.model_id
            await put(client, sequence, name, broken.get(name) or bundle.encode(bundled(name, files)))
            async with asyncio.timeout(30):
                while store.refusals == refused if name in broken else store.model_id != name:
                    decisions = await stream.ask(*(asked(questions + number, 1, 2) for number in range(TOGETHER)))
                    assert [one.question_id for one in decisions] == list(range(questions, questions + TOGETHER))
                    assert all(one.url for one in decisions)
                    questions += TOGETHER
                    await stream.send(cancels=tuple(one.question_id for one in decisions))
            if name in broken:
                assert store.model_id == forecaster.model_id == before
        beating.cancel()
        following.cancel()
        stream.break_off()
    assert (store.swaps, store.refusals) == (MODELS - len(broken), len(broken))
    assert ranker.tally.ranked + sum(ranker.tally.fell_back.values()) == questions
    assert ranker.tally.ranked > 0
    assert heart.beats > questions // TOGETHER
    assert heart.stall_s < STALL_S_MAX, f"the loop stood still for {1000 * heart.stall_s:.1f} ms"

"""The model store against a real Redis, and a stream of real decisions while models come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio

from contract import keyspace
from contract.features import VERSION
from contract.keyspace import ModelsState
from controlplane import profiles, ranking
from controlplane.model_metrics import ModelCollector
from controlplane.model_store import ModelStore
from controlplane.predictor import Forecaster, Sample
from controlplane.rankers import LeastPredicted
from headway.embedded_redis import RedisServer
from prediction import bundle
from prediction.bundle import Bundle
from runtime.clock import SystemClock
from tests.controlplane.models import linear
from tests.controlplane.parts import candidate
from tests.controlplane.served import asked, serve
from tests.waiting import until

Client = redis.asyncio.Redis


async def publish(client: Client, sequence: int, serving: str, *models: Bundle) -> None:
    for model in models:
        await client.set(keyspace.model_key(model.manifest.model_id), bundle.encode(model))
    await client.set(keyspace.MODELS_STATE, keyspace.encode_models(ModelsState(sequence=sequence, serving=serving)))


@asynccontextmanager
async def following(redis_url: str) -> AsyncIterator[tuple[Client, Forecaster, ModelStore]]:
    forecaster = Forecaster()
    store = ModelStore(redis_url, forecaster, SystemClock())
    async with Client.from_url(redis_url) as client:
        yield client, forecaster, store


def predicted(forecaster: Forecaster) -> float:
    forecast = forecaster.forecast([candidate()])
    return 0.0 if forecast is None else forecast.p50_s[0]


async def test_what_the_state_names_serves_and_nothing_serves_before(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        await store.look(client)
        assert predicted(forecaster) == 0.0
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        assert predicted(forecaster) == pytest.approx(0.3)
        assert forecaster.model_id == store.model_id == "m-1"


async def test_a_rollback_and_an_empty_state_are_followed(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3), linear("m-2", median_s=0.6))
        await store.look(client)
        for sequence, serving, median_s in ((2, "m-2", 0.6), (3, "m-1", 0.3), (4, "", 0.0)):
            await publish(client, sequence, serving)
            await store.look(client)
            assert predicted(forecaster) == pytest.approx(median_s)
        assert store.swaps == 4


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (bundle.encode(linear("m-2"))[:-20], "not a model"),
        (b"\x93", "not a model"),
        (bundle.encode(linear("m-2", version=VERSION + 1)), "version"),
        (bundle.encode(linear("m-3")), "under the name m-2 lies model m-3"),
    ],
    ids=["cut", "rubbish", "foreign version", "another"],
)
async def test_a_model_that_cannot_serve_leaves_the_old_one_and_is_said_once(
    redis_url: str, packed: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(redis_url) as (client, forecaster, store):
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        await client.set(keyspace.model_key("m-2"), packed)
        await publish(client, 2, "m-2")
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await store.look(client)
        assert predicted(forecaster) == pytest.approx(0.3)
        assert store.refusals == 1
        assert [record.message for record in caplog.records] == ["a model cannot serve"]
        assert why in str(caplog.records[0].__dict__["f"]["error"])
        await publish(client, 3, "m-4", linear("m-4", median_s=0.9))
        await store.look(client)
        assert predicted(forecaster) == pytest.approx(0.9)


async def test_a_bundle_that_is_late_is_taken_when_it_comes(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        await publish(client, 1, "m-1")
        await store.look(client)
        assert predicted(forecaster) == 0.0
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        assert predicted(forecaster) == pytest.approx(0.3)


async def test_a_state_that_cannot_be_read_changes_nothing(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        await client.set(keyspace.MODELS_STATE, b"\x01")
        await store.look(client)
        await client.delete(keyspace.MODELS_STATE)
        await store.look(client)
        assert predicted(forecaster) == pytest.approx(0.3)


async def test_a_redis_that_comes_back_is_followed_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    forecaster = Forecaster()
    store = ModelStore(server.url, forecaster, SystemClock(), poll_s=0.02)
    task = asyncio.create_task(store.run())
    try:
        async with Client.from_url(server.url) as client:
            await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await until(lambda: store.model_id == "m-1")
        server.stop()
        server.start()
        assert predicted(forecaster) == pytest.approx(0.3)
        async with Client.from_url(server.url) as client:
            await publish(client, 1, "m-2", linear("m-2", median_s=0.6))
        await until(lambda: store.model_id == "m-2")
    finally:
        task.cancel()
        server.stop()


async def test_a_new_model_starts_with_corrections_from_recent_first_tokens(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        row = candidate()
        forecaster.learn([Sample(row, 0.6, row.endpoint.record)] * 50)
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        forecast = forecaster.forecast([row])
        assert forecast is not None
        assert forecast.p50_s[0] == pytest.approx(0.6, rel=0.1)


async def test_no_decision_is_dropped_while_models_are_swapped_under_a_stream(redis_url: str, tmp_path: Path) -> None:
    """Real gRPC, real Redis: every question is answered, by one of the models that were there, each of them in its turn."""
    forecaster = Forecaster()
    predicted_by = LeastPredicted(forecaster)
    built = profiles.build(predicted=predicted_by)
    store = ModelStore(redis_url, forecaster, SystemClock(), poll_s=0.005)
    async with serve(tmp_path, workers=4, policy="predictive", profiles=built) as served, Client.from_url(redis_url) as client:
        following_it = asyncio.create_task(store.run())
        stream = served.stream()
        medians = {f"m-{number}": 0.1 * number for number in range(1, 6)}
        answered, seen = 0, []
        for sequence, (model_id, median_s) in enumerate(medians.items(), 1):
            await publish(client, sequence, model_id, linear(model_id, median_s=median_s, power=0.0))
            async with asyncio.timeout(10):
                while True:
                    decisions = await stream.ask(*(asked(answered + number, 1, 2) for number in range(8)))
                    assert [decision.question_id for decision in decisions] == list(range(answered, answered + 8))
                    assert all(decision.url for decision in decisions)
                    answered += len(decisions)
                    await stream.send(cancels=tuple(decision.question_id for decision in decisions))
                    seen += [round(decision.predicted_ttft_s, 3) for decision in decisions]
                    if seen[-1] == pytest.approx(median_s):
                        break
        following_it.cancel()
        stream.break_off()
    assert store.swaps == len(medians)
    known = [value for value in seen if value]
    assert set(known) == {round(value, 3) for value in medians.values()}
    assert known == sorted(known), "a model that was replaced decided again"
    assert predicted_by.tally.ranked == len(known)
    assert set(predicted_by.tally.fell_back) <= {ranking.NO_MODEL}
    assert predicted_by.tally.ranked + sum(predicted_by.tally.fell_back.values()) == answered


async def test_the_metrics_say_which_model_serves_and_how_it_does(redis_url: str) -> None:
    async with following(redis_url) as (client, forecaster, store):
        ranker = LeastPredicted(forecaster)
        ranker.rank([candidate()])
        await publish(client, 1, "m-1", linear("m-1", median_s=0.3))
        await store.look(client)
        row = candidate()
        ranker.learn([Sample(row, 0.6, row.endpoint.record)] * 100)
        ranker.rank([row])
        collector = ModelCollector(store, forecaster, {"predictive": ranker.tally}, unix=lambda: 60.0)
        found = {
            (sample.name, *sample.labels.values()): sample.value for family in collector.collect() for sample in family.samples
        }
    assert found["headway_model_serving", "m-1", "linear"] == 1.0
    assert found["headway_model_age_seconds",] == 60.0
    assert found["headway_worker_prediction_correction", "w0"] == pytest.approx(2.0, rel=0.05)
    assert found["headway_worker_prediction_log_error", "w0"] < 0.2
    assert found["headway_predicted_decisions_total", "predictive"] == 1
    assert found["headway_prediction_fallbacks_total", "predictive", ranking.NO_MODEL] == 1

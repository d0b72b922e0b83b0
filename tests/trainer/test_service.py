"""python -m trainer on a real Redis: trained, promoted, rolled back, killed, and gone on with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract import keyspace
from headway.embedded_redis import RedisServer
from prediction import bundle, dataset, predictor
from proto import trainer_pb2
from runtime.settings import SettingsError, parse
from tests.trainer.process import PATIENCE_S, connected, feed, running, target, until
from tests.trainer.traffic import RATE, START, outcomes
from trainer.settings import Settings

NEVER = {"samples_min": 1_000_000}


def state(redis_url: str) -> keyspace.ModelsState:
    with redis.Redis.from_url(redis_url) as client:
        data = client.get(keyspace.MODELS_STATE)
    return keyspace.decode_models(data) if data else keyspace.ModelsState(sequence=0)


async def count(stub: object) -> int:
    return int((await stub.ListModels(trainer_pb2.ListModelsRequest())).samples)  # type: ignore[attr-defined]


async def test_from_outcomes_to_a_model_that_control_planes_can_load(short_dir: Path, redis_url: str) -> None:
    with running(short_dir, redis_url):
        feed(redis_url, outcomes(2_000, 6))

        async def shadows() -> bool:
            return state(redis_url).shadow != ""

        await until("the first training puts a model into shadow", shadows)
        feed(redis_url, outcomes(400, 3, first_id=5_000))

        async def serves() -> bool:
            return state(redis_url).serving != ""

        await until("its live outcomes promote it", serves)
        model_id = state(redis_url).serving
        with redis.Redis.from_url(redis_url) as client:
            data = client.get(keyspace.model_key(model_id))
        assert isinstance(data, bytes)
        loaded = predictor.load(bundle.decode(data))
        judged = dataset.of_table(dataset.from_outcomes(outcomes(500, 3)))
        p50_s, _ = loaded.predict(judged.rows)
        assert abs(p50_s / judged.ttft_s - 1).mean() < 0.12
        async with connected(short_dir) as stub:
            listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
            assert [model.state for model in listed.models] == [trainer_pb2.SERVING]
            assert listed.samples == 2_400
            assert [event.what for event in listed.history] == ["trained", "shadow", "promoted"]


async def test_training_on_request_says_how_far_it_is(short_dir: Path, redis_url: str, tmp_path: Path) -> None:
    dataset.write(dataset.from_outcomes(outcomes(1_500, 1)), tmp_path / "data.parquet")
    with running(short_dir, redis_url, **NEVER):
        async with connected(short_dir) as stub:
            call = stub.Train(
                trainer_pb2.TrainRequest(kind="forest", dataset=str(tmp_path / "data.parquet"), seed=2**64 - 1),
                wait_for_ready=True,
            )
            said = [progress async for progress in call]
            assert list(dict.fromkeys(one.stage for one in said)) == ["read", "fit", "calibrate", "judge", "done"]
            model = said[-1].model
            assert model.kind == "forest"
            assert model.evaluation.overall.samples > 100
            assert {zone.zone for zone in model.evaluation.zones} == {"low", "medium", "high"}
            again = await stub.GetModel(trainer_pb2.GetModelRequest(model_id=model.model_id))
            assert again.sha256 == model.sha256
            judged = await stub.Evaluate(
                trainer_pb2.EvaluateRequest(model_id=model.model_id, dataset=str(tmp_path / "data.parquet"))
            )
            assert judged.overall.samples == 1_500


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("Train", trainer_pb2.TrainRequest(kind="oracle"), grpc.StatusCode.INVALID_ARGUMENT, "no kind 'oracle'"),
        ("Train", trainer_pb2.TrainRequest(), grpc.StatusCode.FAILED_PRECONDITION, "no samples"),
        ("Train", trainer_pb2.TrainRequest(dataset="/nowhere"), grpc.StatusCode.FAILED_PRECONDITION, "no such file"),
        ("GetModel", trainer_pb2.GetModelRequest(model_id="x"), grpc.StatusCode.NOT_FOUND, "no model 'x'"),
        ("Promote", trainer_pb2.PromoteRequest(model_id="../x"), grpc.StatusCode.NOT_FOUND, "no model"),
        ("Rollback", trainer_pb2.RollbackRequest(), grpc.StatusCode.FAILED_PRECONDITION, "no model to go back to"),
        ("Evaluate", trainer_pb2.EvaluateRequest(model_id="x"), grpc.StatusCode.NOT_FOUND, "no model 'x'"),
    ],
)
async def test_what_cannot_be_is_said(
    method: str, request_: object, code: grpc.StatusCode, words: str, idle_trainer: Path
) -> None:
    async with connected(idle_trainer) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            call = getattr(stub, method)(request_, wait_for_ready=True)
            if method == "Train":
                assert [progress async for progress in call] == []
            else:
                await call
    assert refused.value.code() == code
    assert words in (refused.value.details() or "")


@pytest.fixture(scope="module")
def idle_trainer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="hw-"))
    server = RedisServer(directory)
    server.start()
    with running(directory, server.url):
        with grpc.insecure_channel(target(directory)) as channel:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        yield directory
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


async def test_health_and_reflection_are_there(idle_trainer: Path) -> None:
    async with grpc.aio.insecure_channel(target(idle_trainer)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service="headway.v1.Trainer"), wait_for_ready=True)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for told in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked])):
            assert "headway.v1.Trainer" in {service.name for service in told.list_services_response.service}


async def test_a_bad_model_promoted_by_hand_is_rolled_back_by_live_outcomes(
    short_dir: Path, redis_url: str, tmp_path: Path
) -> None:
    dataset.write(dataset.from_outcomes(outcomes(1_500, 1)), tmp_path / "good.parquet")
    dataset.write(dataset.from_outcomes(outcomes(1_500, 1, shuffled=True)), tmp_path / "bad.parquet")
    with running(short_dir, redis_url, **NEVER):
        async with connected(short_dir) as stub:
            made = []
            for name in ("good", "bad"):
                ask = trainer_pb2.TrainRequest(kind="lightgbm", dataset=str(tmp_path / f"{name}.parquet"))
                made.append([progress async for progress in stub.Train(ask, wait_for_ready=True)][-1].model)
            good, bad = made
            assert bad.state == trainer_pb2.REJECTED
            await stub.Promote(trainer_pb2.PromoteRequest(model_id=good.model_id, force=True))
            with pytest.raises(grpc.aio.AioRpcError, match="rejected"):
                await stub.Promote(trainer_pb2.PromoteRequest(model_id=bad.model_id))
            served = await stub.Promote(trainer_pb2.PromoteRequest(model_id=bad.model_id, force=True))
            assert served.state == trainer_pb2.SERVING

            async def mirrored() -> bool:
                return state(redis_url).serving == bad.model_id

            await until("the bad model is the one control planes are told of", mirrored)
            feed(redis_url, outcomes(300, 2, first_id=10_000))

            async def back() -> bool:
                return state(redis_url).serving == good.model_id

            await until("the good one serves again", back)
            found = await stub.GetModel(trainer_pb2.GetModelRequest(model_id=bad.model_id))
            assert found.state == trainer_pb2.ROLLED_BACK
            with pytest.raises(grpc.aio.AioRpcError, match="no model to go back to"):
                await stub.Rollback(trainer_pb2.RollbackRequest())


async def test_a_model_promoted_by_itself_that_goes_bad_is_rolled_back_by_itself(short_dir: Path, redis_url: str) -> None:
    """Nobody asks for anything: outcomes come, and for a while the fleet is twice as slow as before and after."""
    fed = 0

    def traffic(count_: int, slower: float = 1.0) -> None:
        nonlocal fed
        feed(redis_url, outcomes(count_, 1 + fed, first_id=1 + fed, at=START + fed / RATE, slower=slower))
        fed += count_

    with running(short_dir, redis_url, kind="linear", train_pause_s=0.1, new_samples_min=1_500):  # so many: drift calls once
        served: list[str] = []

        async def another_serves() -> bool:
            traffic(100, slower=1.0 if not served else 2.0)
            found = state(redis_url).serving
            if found and found not in served:
                served.append(found)
                return True
            return False

        await until("a model of the usual fleet serves", another_serves)
        await until("a model of the slow fleet serves", another_serves)
        usual, slow = served[-2:]
        async with connected(short_dir) as stub:

            async def back() -> bool:
                traffic(100)
                found = await stub.GetModel(trainer_pb2.GetModelRequest(model_id=slow))
                return bool(found.state == trainer_pb2.ROLLED_BACK)

            await until("it is taken out of service when the fleet is as it was", back)
            listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
            notes = {model.model_id: model.note for model in listed.models}
            assert (notes[usual], notes[slow]) == ("first", "drift")
            happened = [(event.what, event.model_id) for event in listed.history]
            assert ("promoted", usual) in happened
            assert happened.index(("promoted", slow)) < happened.index(("rolled back", slow))


async def test_poison_in_a_stream_that_was_good_promotes_nothing(short_dir: Path, redis_url: str) -> None:
    with running(short_dir, redis_url, kind="linear", train_every_s=0.2, train_pause_s=0.1, rollback_factor=1_000.0):
        feed(redis_url, outcomes(2_000, 6))

        async def shadows() -> bool:
            return state(redis_url).shadow != ""

        await until("a model is in shadow", shadows)
        feed(redis_url, outcomes(400, 2, first_id=5_000))

        async def serves() -> bool:
            return state(redis_url).serving != ""

        await until("it serves", serves)
        good = state(redis_url).serving
        async with connected(short_dir) as stub:
            fed = 10_000

            async def judged() -> bool:
                nonlocal fed
                feed(redis_url, outcomes(250, fed, first_id=fed, at=START + fed / RATE, shuffled=True))
                fed += 250
                listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
                return sum(model.trained_at > 0 for model in listed.models) >= 4

            await until("three more models were trained on it", judged)
            listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
            assert [event.model_id for event in listed.history if event.what == "promoted"] == [good]
            assert {model.note for model in listed.models} <= {"first", "schedule", "drift"}
            assert sum(model.note in ("schedule", "drift") for model in listed.models) >= 3


async def test_poisoned_outcomes_never_make_a_model_that_serves(short_dir: Path, redis_url: str) -> None:
    with running(short_dir, redis_url):
        feed(redis_url, outcomes(2_000, 1, shuffled=True))
        async with connected(short_dir) as stub:

            async def rejected() -> bool:
                listed = await stub.ListModels(trainer_pb2.ListModelsRequest())
                return [model.state for model in listed.models] == [trainer_pb2.REJECTED]

            await until("the model is judged and rejected", rejected)
        assert state(redis_url).serving == state(redis_url).shadow == ""


async def test_a_killed_trainer_loses_no_sample_and_takes_none_twice(short_dir: Path, redis_url: str) -> None:
    fed = 0
    for round_ in range(4):
        with running(short_dir, redis_url, **NEVER) as process:
            feed(redis_url, outcomes(500, round_, first_id=1 + fed))
            fed += 500
            if round_ % 2:

                async def some() -> bool:
                    async with connected(short_dir) as stub:
                        return await count(stub) > fed - 500  # noqa: B023 - called in this round

                await until("some are taken", some)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    with running(short_dir, redis_url, **NEVER):
        async with connected(short_dir) as stub:

            async def all_there() -> bool:
                return await count(stub) == fed

            await until("every sample is there, once", all_there)
    whole = dataset.read(short_dir / "data" / "samples")  # SIGTERM put the last of them on disk
    assert sorted(whole.table.column("decision_id").to_pylist()) == list(range(1, fed + 1))


async def test_a_trainer_killed_in_training_leaves_no_half_model_and_trains_again(short_dir: Path, redis_url: str) -> None:
    feed(redis_url, outcomes(3_000, 1))
    for _ in range(2):
        with running(short_dir, redis_url) as process:

            async def training(process: subprocess.Popen[str] = process) -> bool:
                return "training why=" in (short_dir / "log").read_text() or process.poll() is not None

            await until("a training has begun", training)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            (short_dir / "log").write_text("")
    with running(short_dir, redis_url):

        async def shadows() -> bool:
            return state(redis_url).shadow != ""

        await until("a model is in shadow", shadows)
        async with connected(short_dir) as stub:
            assert await count(stub) == 3_000


async def test_a_redis_that_forgot_is_told_again(short_dir: Path, own_redis: RedisServer, tmp_path: Path) -> None:
    dataset.write(dataset.from_outcomes(outcomes(1_500, 1)), tmp_path / "good.parquet")
    with running(short_dir, own_redis.url, **NEVER):
        async with connected(short_dir) as stub:
            ask = trainer_pb2.TrainRequest(kind="linear", dataset=str(tmp_path / "good.parquet"))
            model = [progress async for progress in stub.Train(ask, wait_for_ready=True)][-1].model
            await stub.Promote(trainer_pb2.PromoteRequest(model_id=model.model_id, force=True))

            async def told() -> bool:
                return state(own_redis.url).serving == model.model_id

            await until("Redis knows", told)
            before = state(own_redis.url).sequence
            with redis.Redis.from_url(own_redis.url) as client:
                client.flushall()
            feed(own_redis.url, outcomes(100, 2, first_id=9_000))
            await until("Redis knows again", told)
            assert state(own_redis.url).sequence >= before

            async def read_on() -> bool:
                return await count(stub) == 100

            await until("outcomes are read from the new stream", read_on)


async def test_a_registry_that_was_lost_goes_on_above_what_control_planes_have_seen(
    short_dir: Path, redis_url: str, tmp_path: Path
) -> None:
    seen = keyspace.ModelsState(sequence=41, serving="lost-1")
    with redis.Redis.from_url(redis_url) as client:
        client.set(keyspace.MODELS_STATE, keyspace.encode_models(seen))
    with running(short_dir, redis_url, **NEVER):

        async def above() -> bool:
            return state(redis_url).sequence > 41

        await until("the state has a higher number", above)
        assert state(redis_url).serving == ""


async def test_metrics_and_readiness(short_dir: Path, redis_url: str, free_port: int) -> None:
    with running(short_dir, redis_url, **(NEVER | {"metrics_port": free_port})):
        feed(redis_url, outcomes(50, 1))

        def page(path: str) -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{free_port}{path}", timeout=2) as reply:
                    return str(reply.read().decode())
            except OSError:
                return ""

        async def counted() -> bool:
            return "headway_trainer_samples 50.0" in await asyncio.to_thread(page, "/metrics")

        await until("/metrics counts the samples", counted)
        assert await asyncio.to_thread(page, "/ready") == "ready\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--kind", "oracle"), "'oracle' is not one of"),
        (("--samples-min", "5"), "--samples-min: 5 is below 200"),
        (("--flush-s", "0"), "--flush-s"),
        (("--redis-url", "localhost"), "redis://"),
        (("--rollback-factor", "0.5"), "--rollback-factor"),
        (("--listen", "nowhere"), "--listen"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse(Settings, "trainer", flags, {})


def test_a_directory_in_use_and_an_address_in_use_are_said_in_one_line(short_dir: Path, idle_trainer: Path) -> None:
    for listen, data, words in (
        (f"unix:{short_dir}/t.sock", idle_trainer / "data", "another trainer uses it"),
        (target(idle_trainer), short_dir / "data", "cannot listen on"),
        (f"unix:{short_dir}/t.sock", Path("/proc/nothing"), "/proc/nothing"),
    ):
        command = [sys.executable, "-m", "trainer", "--listen", listen, "--metrics-port", "0", "--data-dir", str(data)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr.strip().splitlines()[-1]
        assert "Traceback" not in ended.stderr

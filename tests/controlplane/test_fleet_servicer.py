"""The Fleet service over a real channel: what operators see and may do."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.keyspace import EngineState
from controlplane import profiles
from controlplane.index_state import IndexState
from proto import fleet_pb2 as pb
from tests.controlplane.parts import hashes, report
from tests.controlplane.served import Served, asked, serve


async def workers(served: Served) -> dict[str, pb.WorkerStatus]:
    listed = await served.fleet.ListWorkers(pb.ListWorkersRequest())
    return {status.worker: status for status in listed.workers}


async def test_a_worker_is_listed_with_everything_known_of_it(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        plant = served.plant
        plant.index.store(0, hashes(1, 2, 3))
        plant.snapshot.worker_reported(report(running=2, waiting=1, kv_usage=0.25), plant.now)
        [decision] = await served.stream().ask(asked(1, 1, 2, 3, 4))
        plant.self_check.compare("w0", 1, "m", 16, 16)
        status = (await workers(served))["w0"]
        assert (status.url, list(status.models), status.alive, status.draining) == ("http://w0:8000", ["m"], True, False)
        assert (status.breaker, status.index, status.blocks) == (pb.CLOSED, pb.EXACT, 3)
        assert (status.active, status.prefill_tokens) == (1, 4 * 16 + 8 - decision.matched_tokens)
        assert (status.running, status.waiting, status.kv_usage) == (2, 1, 0.25)
        assert (status.block_size, status.cache_blocks, status.incarnation) == (16, 1000, 1)
        assert (status.match_ratio, status.match_samples) == (1.0, 1)
        assert (status.requests, status.failures, status.alarm, status.accelerator) == (1, 0, "", "cpu")
        listed = await served.fleet.ListWorkers(pb.ListWorkersRequest())
        assert (listed.policy, listed.redis_connected, listed.warm, listed.index_blocks) == ("lmetric", True, True, 3)


async def test_a_worker_without_comparisons_has_no_match_ratio(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        assert not (await workers(served))["w0"].HasField("match_ratio")


async def test_alarms_say_what_is_wrong(short_dir: Path) -> None:
    async with serve(short_dir, workers=6) as served:
        plant = served.plant
        plant.endpoint("w0").last_seen -= 4.2
        plant.endpoint("w1").breaker.suspect(plant.now, "5 failures in a row, the last CONNECT_FAILED")
        for _ in range(40):
            plant.endpoint("w2").credit = plant.self_check.compare("w2", 1, "m", 100, 41)
        plant.snapshot.worker_reported(report("w3", state=EngineState.UNREACHABLE), plant.now)
        plant.index.set_state(4, IndexState.DEGRADED)
        for worker in ("w1", "w2", "w3", "w4", "w5"):
            plant.endpoint(worker).last_seen = plant.now
        listed = await workers(served)
        assert listed["w0"].alarm.startswith("its agent is silent for 4.")
        assert listed["w1"].alarm == "breaker open: 5 failures in a row, the last CONNECT_FAILED"
        assert "predicted matches do not come true (41%" in listed["w2"].alarm
        assert listed["w2"].index == pb.DEGRADED
        assert "unreachable" in listed["w3"].alarm
        assert "known to be wrong" in listed["w4"].alarm
        assert listed["w5"].alarm == ""


async def test_a_hanging_engine_is_named_before_its_breaker_opens(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        await served.stream().ask(asked(1, 1))
        endpoint = served.plant.endpoint()
        endpoint.load.moved_at -= 12
        endpoint.progressed_at -= 12
        assert "engine may hang: 1 requests there, no progress for 12 s" in (await workers(served))["w0"].alarm


async def test_a_drained_worker_gets_no_requests_until_it_is_undrained(short_dir: Path) -> None:
    async with serve(short_dir, policy="round_robin") as served:
        stream = served.stream()
        status = await served.fleet.Drain(pb.DrainRequest(worker="w0"))
        assert status.draining
        assert {decision.worker for decision in await stream.ask(asked(1), asked(2), asked(3))} == {"w1"}
        status = await served.fleet.Undrain(pb.DrainRequest(worker="w0"))
        assert not status.draining
        assert {decision.worker for decision in await stream.ask(asked(4), asked(5))} == {"w0", "w1"}


@pytest.mark.parametrize(
    ("worker", "code", "says"),
    [
        ("w9", grpc.StatusCode.NOT_FOUND, "no worker 'w9'; known are w0, w1"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "no worker named"),
    ],
)
async def test_draining_what_is_not_there_is_refused(short_dir: Path, worker: str, code: grpc.StatusCode, says: str) -> None:
    async with serve(short_dir) as served:
        for call in (served.fleet.Drain, served.fleet.Undrain):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(pb.DrainRequest(worker=worker))
            assert refused.value.code() == code
            assert says in (refused.value.details() or "")


async def test_of_a_large_fleet_likely_names_are_told(short_dir: Path) -> None:
    """All of them would be longer than what a gRPC status may hold."""
    async with serve(short_dir, workers=600) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.fleet.Drain(pb.DrainRequest(worker="w1234"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert "no worker 'w1234'; 600 are known, among them w" in (refused.value.details() or "")


async def test_a_name_without_end_is_refused_like_a_short_one(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        long = "x" * 100_000
        for call, code in (
            (served.fleet.Drain(pb.DrainRequest(worker=long)), grpc.StatusCode.NOT_FOUND),
            (served.fleet.SetPolicy(pb.SetPolicyRequest(name=long)), grpc.StatusCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == code


async def test_the_policy_is_switched_for_the_next_decision(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        policy = await served.fleet.GetPolicy(pb.GetPolicyRequest())
        assert (policy.name, tuple(policy.available)) == ("lmetric", profiles.NAMES)
        assert (await served.fleet.SetPolicy(pb.SetPolicyRequest(name="prefix"))).name == "prefix"
        [decision] = await served.stream().ask(asked(1, 1))
        assert decision.policy == "prefix"


async def test_a_policy_that_is_none_is_refused_with_a_list(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.fleet.SetPolicy(pb.SetPolicyRequest(name="fastest"))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert all(name in (refused.value.details() or "") for name in ("fastest", *profiles.NAMES))


async def test_health_and_reflection_answer(short_dir: Path) -> None:
    async with serve(short_dir) as served:
        health = health_pb2_grpc.HealthStub(served.channel)
        reply = await health.Check(health_pb2.HealthCheckRequest(service="headway.v1.Routing"))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo()
        await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [service.name for service in (await reflection.read()).list_services_response.service]
        assert {"headway.v1.Routing", "headway.v1.Fleet", "grpc.health.v1.Health"} <= set(names)
        reflection.cancel()

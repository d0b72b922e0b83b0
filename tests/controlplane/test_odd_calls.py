"""Calls with absurd fields: a status that says what is wrong, never a traceback, and nothing is learned from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from contract.routing import Asked, Ended, Request, Said, pack, unpack_said
from controlplane.candidates import candidates_of
from controlplane.endpoint import Endpoint, features
from controlplane.ledger import Claim
from proto import fleet_pb2, routing_pb2
from tests.controlplane.parts import MODEL, Plant, question
from tests.controlplane.served import Served, serve

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
NAN, INF = float("nan"), float("inf")
GRPC_POLLER = "PollerCompletionQueue._handle_events"
"""gRPC's own: it may have something left for the loop of an earlier test, which is closed, and the running one says so."""
EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
}

CALLS: dict[str, Callable[[Served], Awaitable[Any]]] = {
    "route nothing": lambda to: to.route.Route(routing_pb2.RouteRequest()),
    "route an unknown model": lambda to: to.route.Route(
        routing_pb2.RouteRequest(question=routing_pb2.Question(model="\x00" * 100_000))
    ),
    "route the largest numbers": lambda to: to.route.Route(
        routing_pb2.RouteRequest(
            question=routing_pb2.Question(
                question_id=U64,
                model=MODEL,
                input_tokens=U32,
                max_tokens=U32,
                priority=-(1 << 31),
                slo_ttft_ms=INF,
                exclude=[U32] * 1_000,
                attempt=U32,
            ),
            reserve=True,
        )
    ),
    "route with a bound that is no number": lambda to: to.route.Route(
        routing_pb2.RouteRequest(question=routing_pb2.Question(model=MODEL, slo_ttft_ms=NAN), reserve=True)
    ),
    "route with a bound below nothing": lambda to: to.route.Route(
        routing_pb2.RouteRequest(question=routing_pb2.Question(model=MODEL, slo_ttft_ms=-INF), reserve=True)
    ),
    "route chains of no length and of none": lambda to: to.route.Route(
        routing_pb2.RouteRequest(
            question=routing_pb2.Question(
                model=MODEL, chains=[routing_pb2.BlockChain(block_size=size, hashes=b"\xff" * 8) for size in (0, 1, 16, U32)]
            )
        )
    ),
    "route a chain that is cut": lambda to: to.route.Route(
        routing_pb2.RouteRequest(
            question=routing_pb2.Question(model=MODEL, chains=[routing_pb2.BlockChain(block_size=16, hashes=b"\xff" * 9)])
        )
    ),
    "report nothing": lambda to: to.route.Report(routing_pb2.Outcome()),
    "report an unknown request": lambda to: to.route.Report(routing_pb2.Outcome(decision_id=U64, end=77)),  # type: ignore[arg-type]
    "report at no address": lambda to: to.route.Report(routing_pb2.Outcome(url="\x00", ttft_s=NAN, e2e_s=INF)),
    "report at an address, no number": lambda to: to.route.Report(
        routing_pb2.Outcome(url="http://w0:8000", end=routing_pb2.COMPLETE, ttft_s=NAN, e2e_s=NAN, itl_s=NAN)
    ),
    "report at an address, without end": lambda to: to.route.Report(
        routing_pb2.Outcome(
            url="http://w0:8000", end=routing_pb2.COMPLETE, ttft_s=INF, e2e_s=-INF, itl_s=INF, output_tokens=U32
        )
    ),
    "explain what never was": lambda to: to.route.Explain(routing_pb2.ExplainRequest(decision_id=U64)),
    "drain nobody": lambda to: to.fleet.Drain(fleet_pb2.DrainRequest()),
    "drain somebody odd": lambda to: to.fleet.Drain(fleet_pb2.DrainRequest(worker="\x00é\n" * 50_000)),
    "take back nobody": lambda to: to.fleet.Undrain(fleet_pb2.DrainRequest(worker="w0" * 10_000)),
    "an odd policy": lambda to: to.fleet.SetPolicy(fleet_pb2.SetPolicyRequest(name="\x00" * 50_000)),
    "no policy": lambda to: to.fleet.SetPolicy(fleet_pb2.SetPolicyRequest()),
    "workers": lambda to: to.fleet.ListWorkers(fleet_pb2.ListWorkersRequest()),
}


def sane(endpoint: Endpoint, plant: Plant) -> bool:
    """Nothing of what the next decision would see is no number."""
    lane = plant.snapshot.lane(MODEL)
    assert lane is not None
    rows = candidates_of(lane, Request(model=MODEL, input_tokens=10), {}, plant.now)
    return all(math.isfinite(value) for row in rows for value in features(row))


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_ends_in_a_status_of_its_own(name: str, short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(short_dir, workers=2) as served:
        refusal: grpc.aio.AioRpcError | None = None
        with caplog.at_level(logging.ERROR):
            try:
                await CALLS[name](served)
            except grpc.aio.AioRpcError as error:
                refusal = error
        assert refusal is None or (refusal.code() in EXPECTED and refusal.details()), refusal
        assert not [record for record in caplog.records if GRPC_POLLER not in record.getMessage()]
        assert sane(served.plant.endpoint(), served.plant)
        await served.fleet.ListWorkers(fleet_pb2.ListWorkersRequest())
        told = await served.route.Route(routing_pb2.RouteRequest(question=routing_pb2.Question(model=MODEL, input_tokens=4)))
        assert told.worker in ("w0", "w1")


async def test_a_reserved_request_may_not_be_reported_with_times_that_are_none(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        for field, value in (("ttft_s", NAN), ("e2e_s", INF), ("itl_s", -INF), ("ttft_s", 1e30)):
            asked = routing_pb2.RouteRequest(question=routing_pb2.Question(model=MODEL, input_tokens=64), reserve=True)
            placed = await served.route.Route(asked)
            outcome = routing_pb2.Outcome(decision_id=placed.decision_id, end=routing_pb2.COMPLETE, streamed=True)
            setattr(outcome, field, value)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await served.route.Report(outcome)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert field in (refused.value.details() or "")
            await served.route.Report(routing_pb2.Outcome(decision_id=placed.decision_id, end=routing_pb2.CLIENT_GONE))
        assert len(served.plant.ledger) == 0
        assert sane(served.plant.endpoint(), served.plant)


ABSURD: dict[str, Said] = {
    "first token after no time": Said([], [(1, NAN)]),
    "first token never": Said([], [(1, INF)]),
    "no time to a first token": Said([], [], [Ended(decision_id=1, end=1, ttft_s=NAN)]),
    "no time to the end": Said([], [], [Ended(decision_id=1, end=1, e2e_s=INF)]),
    "no gap": Said([], [], [Ended(decision_id=1, end=1, itl_s=NAN)]),
    "fewer tokens than none": Said([Asked(1, Request(model="m", input_tokens=-1))]),
    "fewer tokens wanted than none": Said([Asked(1, Request(model="m", max_tokens=-1))]),
    "more tokens than there are": Said([Asked(1, Request(model="m", input_tokens=1 << 60))]),
    "a bound that is no number": Said([Asked(1, Request(model="m", slo_ttft_ms=NAN))]),
    "tokens from the future": Said(token_ages=[(1, -INF)]),
    "tokens at no time": Said(token_ages=[(1, NAN)]),
}


@pytest.mark.parametrize("name", ABSURD)
def test_packed_messages_that_would_spoil_what_is_learned_cannot_be_read(name: str) -> None:
    with pytest.raises(ValueError, match="Expected"):
        unpack_said(pack(ABSURD[name]))


def test_what_data_planes_say_is_read() -> None:
    said = Said(
        [Asked(0, Request(model=MODEL, input_tokens=1 << 24, max_tokens=1 << 20, priority=-5, slo_ttft_ms=250.0))],
        [((1 << 62) + 5, 0.0), (2, 3_600.0)],
        [Ended(decision_id=(1 << 62) + 5, end=1, e2e_s=14_400.0), Ended(decision_id=0, end=5)],
        [7],
        [(3, 0.0), (5, 59.0)],
    )
    assert unpack_said(pack(said)) == said


def test_places_that_nobody_registered_are_forgotten_with_what_was_claimed_there() -> None:
    plant = Plant(1)
    for number in range(50):
        owner = f"dp-{number}"
        plant.director.arrived(owner, [Claim(1_000 + number, f"http://gone-{number}", 5, 5, False)], plant.now)
        plant.director.departed(owner, plant.now)
    assert len(plant.ledger.loads) == 51
    plant.pass_time(11.0)
    assert set(plant.ledger.loads) == {"http://w0:8000"}
    assert len(plant.ledger) == 0
    assert not plant.ledger.gone()
    plant.place(question(1))
    assert plant.endpoint().load.active == 1
    assert msgspec.structs.asdict(plant.outcomes[0])["url"].startswith("http://gone")

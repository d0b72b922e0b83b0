"""What data planes are told of models: the name that salts the block hashes, above all."""

from __future__ import annotations

import pytest

from contract.keyspace import EngineState, ModelCard
from contract.outcome import End
from controlplane.breaker import BreakerState
from controlplane.fleet_view import FleetWatch
from controlplane.progress import HUNG_AFTER_S
from tests.controlplane.parts import Plant, record, report


@pytest.mark.parametrize(
    ("name", "base", "alias"),
    [("first", "first", False), ("second", "first", True), ("sql", "first", False)],
    ids=["the base model", "its other name", "an adapter"],
)
def test_a_model_is_hashed_under_the_first_name_of_its_base(name: str, base: str, alias: bool) -> None:
    plant = Plant(0)
    cards = (
        ModelCard("first", "first", "org/model", 4096),
        ModelCard("second", "second", "org/model", 4096),
        ModelCard("sql", "first", "/adapters/sql", 4096),
    )
    plant.snapshot.worker_registered(record("w9", models=("first",)).__replace__(models=cards), plant.now)
    view = FleetWatch(plant.snapshot, plant.director, first_version=1).view(plant.now)
    (model,) = [model for model in view.models if model.name == name]
    assert (model.base, model.alias) == (base, alias)


def test_where_nothing_moves_is_said_until_a_request_has_come_through() -> None:
    plant = Plant(2)
    watch = FleetWatch(plant.snapshot, plant.director, first_version=1)
    worker = plant.place().candidate.endpoint.worker
    assert stuck(watch, plant) == set()
    version = watch.view(plant.now).version
    plant.pass_time(HUNG_AFTER_S + 1)
    assert stuck(watch, plant) == {worker}
    assert watch.view(plant.now).version > version
    plant.now += 2
    assert plant.endpoint(worker).breaker.view(plant.now) == BreakerState.HALF_OPEN
    assert stuck(watch, plant) == {worker}
    plant.endpoint(worker).breaker.began(plant.now, 99)
    plant.endpoint(worker).breaker.first_byte(plant.now, 99)
    assert stuck(watch, plant) == set()


def test_an_engine_that_does_not_answer_its_agent_is_stuck_and_one_whose_agent_is_gone_is_not() -> None:
    plant = Plant(1)
    watch = FleetWatch(plant.snapshot, plant.director, first_version=1)
    plant.snapshot.worker_reported(report("w0", state=EngineState.UNREACHABLE), plant.now)
    assert stuck(watch, plant) == {"w0"}
    plant.snapshot.worker_left("w0", plant.now)
    assert stuck(watch, plant) == set()


@pytest.mark.parametrize(("end", "suspected"), [(End.RESET, True), (End.COMPLETE, False)])
def test_a_suspicion_lasts_until_a_request_has_come_through(end: End, suspected: bool) -> None:
    plant = Plant(1)
    breaker = plant.endpoint().breaker
    breaker.suspect(plant.now, "hung")
    assert breaker.suspected
    breaker.began(plant.now + 2, 7)
    breaker.ended(plant.now + 2, 7, end)
    assert breaker.suspected == suspected


def stuck(watch: FleetWatch, plant: Plant) -> set[str]:
    return {endpoint.worker for endpoint in watch.view(plant.now).endpoints if endpoint.stuck}

"""What data planes are told of models: the name that salts the block hashes, above all."""

from __future__ import annotations

import pytest

from contract.keyspace import ModelCard
from controlplane.fleet_view import FleetWatch
from tests.controlplane.parts import Plant, record


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

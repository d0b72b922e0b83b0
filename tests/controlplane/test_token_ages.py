"""How far the step is that an engine is in: by what data planes say of its tokens, and by its first bytes and ends."""

from __future__ import annotations

import pytest

from contract.features import INDEX
from tests.controlplane.parts import Plant, question


def test_a_step_is_as_old_as_the_latest_word_of_its_engine() -> None:
    plant = Plant(1)
    first = plant.place(question(tokens=1000), question_id=1)
    assert first.candidate.step_age_s == 0.0, "idle"
    plant.now += 0.5
    assert plant.place(question_id=2).candidate.step_age_s == pytest.approx(0.5), "since the first one came"
    plant.director.first_byte(first.decision_id, 0.5, plant.now)
    plant.now += 0.25
    assert plant.place(question_id=3).candidate.step_age_s == pytest.approx(0.25), "since a first byte"
    slot = plant.endpoint().slot
    plant.director.tokens_came([(slot, 0.0625), (slot + 77, 0.01)], plant.now)
    told = plant.place(question_id=4)
    assert told.candidate.step_age_s == pytest.approx(0.0625), "since tokens of a stream came"
    plant.director.tokens_came([(slot, 0.2)], plant.now)
    assert plant.place(question_id=5).candidate.step_age_s == pytest.approx(0.0625), "another process saw older ones"
    plant.now += 1.0
    plant.director.tokens_came([(slot, 0.0)], plant.now)
    assert told.candidate.step_age_s == pytest.approx(0.0625), "what was known of it then"
    plant.end(told)
    assert plant.outcomes[-1].features[INDEX["step_age_s"]] == pytest.approx(0.0625)


def test_an_endpoint_that_is_idle_again_is_in_no_step() -> None:
    plant = Plant(1)
    plant.end(plant.place(question_id=1))
    plant.director.tokens_came([(plant.endpoint().slot, 0.1)], plant.now)
    plant.now += 3.0
    assert plant.place(question_id=2).candidate.step_age_s == 0.0

"""A control plane with nothing to do looks less often, and never when something waits."""

from __future__ import annotations

import pytest

from contract.outcome import End
from controlplane.answers import TTL_S
from controlplane.director import Director
from controlplane.index_state import IndexState
from controlplane.prefix_index import PrefixIndex
from controlplane.speculation import SPECULATION_TTL_S
from tests.controlplane.parts import Plant, hashes, question
from tests.suites.dict_table import DictTable


@pytest.fixture(params=[False, True], ids=["flat memory", "dictionary"])
def index(request: pytest.FixtureRequest) -> PrefixIndex:
    made = PrefixIndex(DictTable()) if request.param else PrefixIndex()
    made.attach(0, capacity_blocks=100, exact=True)
    made.set_state(0, IndexState.EXACT)
    return made


def test_an_index_rests_when_no_guess_grows_old(index: PrefixIndex) -> None:
    assert index.at_rest
    index.store(0, hashes(1, 2))
    assert index.at_rest, "what engines announced stays"
    index.speculate(0, hashes(1, 2, 3), 10.0)
    assert not index.at_rest
    index.expire(10.0 + SPECULATION_TTL_S)
    assert index.at_rest
    index.answered(0, 2, 2, 4, 20.0)
    assert not index.at_rest
    index.expire(20.0 + TTL_S)
    assert index.at_rest


def test_an_index_does_not_rest_before_it_has_swept_what_left(index: PrefixIndex) -> None:
    index.store(0, hashes(*range(1, 100)))
    index.detach(0)
    assert not index.at_rest
    for _ in range(100):
        index.sweep()
    assert index.at_rest
    assert len(index) == 0


def test_guesses_of_engines_without_events_do_not_age() -> None:
    made = PrefixIndex()
    made.attach(0, capacity_blocks=100, exact=False)
    made.speculate(0, hashes(1, 2, 3), 10.0)
    assert made.at_rest


def rests(director: Director) -> bool:
    return director.at_rest


def test_a_director_rests_when_nothing_is_in_flight_and_nobody_waits() -> None:
    plant = Plant(1, active_max=0)
    assert rests(plant.director)
    first = plant.place(question_id=1)
    assert not rests(plant.director)
    assert plant.ask(question(1), question_id=2) is None, "it waits for room"
    plant.end(first, End.RESET)
    assert not rests(plant.director)
    plant.director.cancel("dp", 2, plant.now)
    assert rests(plant.director)

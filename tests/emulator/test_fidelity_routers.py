from __future__ import annotations

import random
from array import array

import pytest

from emulator.engine import Engine
from emulator.fidelity.replay import engine_of
from emulator.fidelity.routers import IMBALANCE_MAX, Replica, blind, by_user, of_two, prefix, routers
from emulator.presets import TINY_CPU
from emulator.sequence import Request


def engine() -> Engine:
    return engine_of(TINY_CPU, TINY_CPU.batching)


@pytest.fixture
def replicas() -> list[Replica]:
    return [Replica(engine()) for _ in range(4)]


def ask(replica: Replica, user: int, name: str, at_s: float = 0.0) -> None:
    replica.add(user, Request(name, array("I", range(user, user + 50)).tobytes(), 4, ignore_eos=True), at_s)


def test_a_replica_has_the_first_token_of_everyone_it_served(replicas: list[Replica]) -> None:
    replica = replicas[0]
    ask(replica, 1, "a", 2.0)
    ask(replica, 2, "b", 2.0)
    replica.advance(2.0)
    assert replica.first_s == {}
    replica.advance(float("inf"))
    assert replica.first_s.keys() == {"a", "b"}
    assert 2.0 < replica.first_s["a"] <= replica.now
    assert replica.num_live == 0


def test_prefix_routing_stays_with_a_user_until_the_replica_has_clearly_more_to_do(replicas: list[Replica]) -> None:
    rng = random.Random(1)
    ask(replicas[2], 7, "first")
    replicas[2].advance(float("inf"))
    assert prefix(7, replicas, rng) == 2
    for number in range(IMBALANCE_MAX + 1):
        ask(replicas[2], 100 + number, str(number))
    assert prefix(7, replicas, rng) != 2


def test_prefix_routing_gives_a_new_user_to_a_replica_with_least_to_do(replicas: list[Replica]) -> None:
    for place in (0, 1, 3):
        ask(replicas[place], place, str(place))
    assert prefix(99, replicas, random.Random(1)) == 2


def test_a_user_s_replica_never_changes_and_users_are_spread(replicas: list[Replica]) -> None:
    rng = random.Random(1)
    places = [by_user(user, replicas, rng) for user in range(200)]
    assert places == [by_user(user, replicas, rng) for user in range(200)]
    assert set(places) == {0, 1, 2, 3}


def test_blind_routing_reaches_every_replica(replicas: list[Replica]) -> None:
    rng = random.Random(1)
    assert {blind(1, replicas, rng) for _ in range(100)} == {0, 1, 2, 3}


def test_of_two_replicas_the_busier_one_is_left_alone(replicas: list[Replica]) -> None:
    rng = random.Random(1)
    ask(replicas[0], 1, "a")
    assert {of_two(1, replicas, rng) for _ in range(100)} == {1, 2, 3}


def test_there_is_a_stand_in_for_every_recorded_router() -> None:
    assert len(routers()) == 6

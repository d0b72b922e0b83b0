"""The fleet snapshot: who is there, under which number, and who is not any more."""

from __future__ import annotations

import pytest

from contract.keyspace import EngineState
from controlplane.breaker import BreakerBounds
from controlplane.ledger import Ledger
from controlplane.snapshot import FORGET_AFTER_S, FleetSnapshot
from tests.controlplane.parts import MODEL, record, report

TTL_S = 3.0


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def snapshot(ledger: Ledger) -> FleetSnapshot:
    return FleetSnapshot(ledger, BreakerBounds())


def serving(snapshot: FleetSnapshot, model: str = MODEL) -> list[str]:
    lane = snapshot.lane(model)
    return [] if lane is None else [endpoint.worker for endpoint in lane.serving]


def tick(snapshot: FleetSnapshot, start: float, seconds: float, *, connected: bool = True) -> float:
    """As upkeep does, four times a second."""
    now = start
    while now < start + seconds:
        now += 0.25
        snapshot.tick(now, connected=connected)
    return now


def test_a_worker_keeps_its_number_across_restarts(snapshot: FleetSnapshot) -> None:
    assert snapshot.worker_registered(record("a"), 0.0) == 0
    assert snapshot.worker_registered(record("b"), 0.0) == 1
    snapshot.worker_left("a", 1.0)
    assert snapshot.worker_registered(record("c"), 1.0) == 2
    assert snapshot.worker_registered(record("a", epoch=2), 2.0) == 0
    assert serving(snapshot) == ["a", "b", "c"]


def test_a_silent_worker_leaves_the_candidates_within_its_ttl(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    now = tick(snapshot, 0.0, TTL_S - 0.25)
    assert serving(snapshot) == ["a"]
    tick(snapshot, now, 0.5)
    assert serving(snapshot) == []


def test_a_report_of_a_silent_worker_brings_it_back(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    now = tick(snapshot, 0.0, TTL_S + 1)
    assert serving(snapshot) == []
    snapshot.worker_reported(report("a"), now)
    assert serving(snapshot) == ["a"]


def test_nobody_expires_while_redis_is_down_and_everybody_gets_a_ttl_when_it_is_back(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    now = tick(snapshot, 0.0, 60.0, connected=False)
    assert serving(snapshot) == ["a"]
    now = tick(snapshot, now, TTL_S - 0.5)
    assert serving(snapshot) == ["a"]
    tick(snapshot, now, 1.0)
    assert serving(snapshot) == []


def test_a_pause_of_the_control_plane_itself_is_not_silence_of_the_workers(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    snapshot.tick(0.25, connected=True)
    snapshot.tick(30.0, connected=True)
    assert serving(snapshot) == ["a"]


def test_a_worker_gone_for_long_is_forgotten_and_its_number_used_again(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    snapshot.worker_left("a", 1.0)
    assert snapshot.tick(1.0, connected=True) == []
    forgotten = []
    now = 1.0
    while not forgotten and now < 2 * FORGET_AFTER_S:
        now += 0.5
        forgotten = snapshot.tick(now, connected=True)
    assert [endpoint.worker for endpoint in forgotten] == ["a"]
    assert now > FORGET_AFTER_S
    assert snapshot.endpoints() == ()
    assert snapshot.model_seen(MODEL)
    assert snapshot.worker_registered(record("b"), now) == 0


def test_a_worker_with_requests_still_there_is_not_forgotten(snapshot: FleetSnapshot, ledger: Ledger) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    ledger.reserve(1, "http://a:8000", uncached_tokens=1, input_tokens=1, now=0.0, owner="x")
    snapshot.tick(0.0, connected=True)
    for step in range(int(FORGET_AFTER_S) * 2):
        assert snapshot.tick(0.5 * step, connected=True) == []


@pytest.mark.parametrize("state", [state for state in EngineState if state != EngineState.READY], ids=lambda state: state.name)
def test_an_engine_that_is_not_ready_is_no_candidate_until_it_is(snapshot: FleetSnapshot, state: EngineState) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    snapshot.worker_reported(report("a", state=state), 0.1)
    assert serving(snapshot) == []
    snapshot.worker_reported(report("a"), 0.2)
    assert serving(snapshot) == ["a"]


def test_a_state_of_a_newer_agent_counts_as_not_ready(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    snapshot.worker_reported(report("a", state=99), 0.1)  # type: ignore[arg-type]
    assert serving(snapshot) == []


def test_reports_of_another_run_are_dropped(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a", epoch=5), 0.0)
    snapshot.worker_reported(report("a", epoch=4, running=7), 0.1)
    [endpoint] = snapshot.endpoints()
    assert endpoint.running == 0
    snapshot.worker_reported(report("a", epoch=5, running=7), 0.1)
    assert endpoint.running == 7


def test_another_run_of_an_engine_starts_with_a_clean_record(snapshot: FleetSnapshot) -> None:
    slot = snapshot.worker_registered(record("a"), 0.0)
    endpoint = snapshot.at_slot(slot)
    assert endpoint is not None
    snapshot.worker_reported(report("a", running=9, state=EngineState.UNREACHABLE), 0.1)
    endpoint.breaker.suspect(0.1, "it was hung")
    endpoint.credit = False
    snapshot.worker_registered(record("a", epoch=2), 1.0)
    assert endpoint.breaker.admits(1.0)
    assert endpoint.credit
    assert (endpoint.running, endpoint.serving) == (0, True)


def test_a_worker_that_moves_to_another_address_leaves_its_load_behind(snapshot: FleetSnapshot, ledger: Ledger) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    ledger.reserve(1, "http://a:8000", uncached_tokens=1, input_tokens=1, now=0.0, owner="x")
    snapshot.worker_registered(record("a", epoch=2, url="http://elsewhere"), 1.0)
    [endpoint] = snapshot.endpoints()
    assert endpoint.load.active == 0
    assert snapshot.at_url("http://elsewhere") is endpoint
    assert snapshot.at_url("http://a:8000") is None


def test_claims_made_before_the_fleet_is_read_are_found_when_the_worker_registers(
    snapshot: FleetSnapshot, ledger: Ledger
) -> None:
    ledger.reserve(1, "http://a:8000", uncached_tokens=1, input_tokens=1, now=0.0, owner="x")
    snapshot.worker_registered(record("a"), 1.0)
    assert snapshot.endpoints()[0].load.active == 1


def test_draining_takes_a_worker_out_and_undraining_puts_it_back(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a"), 0.0)
    assert snapshot.drain("nobody", True) is None
    assert snapshot.drain("a", True) is not None
    assert serving(snapshot) == []
    snapshot.worker_registered(record("a", epoch=2), 1.0)
    assert serving(snapshot) == []
    snapshot.drain("a", False)
    assert serving(snapshot) == ["a"]


def test_the_version_grows_with_changes_and_only_with_them(snapshot: FleetSnapshot) -> None:
    versions = [snapshot.version]

    def grew() -> bool:
        versions.append(snapshot.version)
        return versions[-1] > versions[-2]

    snapshot.worker_registered(record("a"), 0.0)
    assert grew()
    snapshot.worker_registered(record("a"), 0.1)
    snapshot.worker_reported(report("a", running=3), 0.1)
    snapshot.tick(0.2, connected=True)
    assert not grew()
    snapshot.worker_reported(report("a", state=EngineState.UNHEALTHY), 0.2)
    assert grew()
    snapshot.drain("a", True)
    assert grew()
    snapshot.worker_left("a", 0.3)
    assert grew()


def test_a_lane_sorts_its_endpoints_and_knows_their_block_sizes(snapshot: FleetSnapshot) -> None:
    for worker, size in (("a", 16), ("b", 32), ("c", 16), ("d", 16)):
        snapshot.worker_registered(record(worker, block_size=size), 0.0)
    snapshot.drain("c", True)
    lane = snapshot.lane(MODEL)
    assert lane is not None
    assert [endpoint.slot for endpoint in lane.serving] == [0, 1, 3]
    assert [endpoint.slot for endpoint in lane.absent] == [2]
    assert lane.masks == {16: 0b1001, 32: 0b0010}


def test_names_that_callers_invent_are_not_remembered(snapshot: FleetSnapshot) -> None:
    for number in range(100):
        assert snapshot.lane(f"invented-{number}") is None
    assert not snapshot.model_seen("invented-1")
    assert len(snapshot._lanes) == 0


def test_an_address_served_by_a_new_worker_belongs_to_it(snapshot: FleetSnapshot) -> None:
    snapshot.worker_registered(record("a", url="http://x"), 0.0)
    snapshot.worker_registered(record("b", url="http://x"), 1.0)
    found = snapshot.at_url("http://x")
    assert found is not None
    assert found.worker == "b"
    snapshot.worker_registered(record("a", epoch=2, url="http://y"), 2.0)
    assert snapshot.at_url("http://x") is found

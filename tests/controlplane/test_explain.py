"""The ring of recent decisions: bounded by decisions and by rows."""

from __future__ import annotations

from contract.outcome import End
from controlplane.explain import DecisionRing, Trace
from controlplane.question import Shed, ShedReason
from tests.controlplane.parts import Plant, candidate, question


def trace(number: int, rows: int) -> Trace:
    profile = Plant().director._profile
    return Trace(
        number,
        0.0,
        profile,
        question(1).request,
        tuple(candidate(slot) for slot in range(rows)),
        (),
        Shed(ShedReason.NO_WORKER, "x"),
    )


def test_the_oldest_decision_is_forgotten_first() -> None:
    ring = DecisionRing(decisions_max=3)
    for number in range(1, 6):
        ring.add(trace(number, 1))
    assert [number for number in range(1, 6) if ring.get(number)] == [3, 4, 5]


def test_large_fleets_are_remembered_for_fewer_decisions() -> None:
    ring = DecisionRing(rows_max=100)
    for number in range(10):
        ring.add(trace(number, 40))
    assert len(ring) == 2


def test_one_decision_is_always_remembered() -> None:
    ring = DecisionRing(rows_max=10)
    ring.add(trace(1, 40))
    assert ring.get(1)


def test_the_first_end_is_the_one_remembered() -> None:
    plant = Plant()
    decision = plant.place()
    assert plant.end(decision)
    assert not plant.end(decision, End.RESET)
    remembered = plant.ring.get(decision.decision_id)
    assert remembered is not None
    assert remembered.ended is not None
    assert remembered.ended.end == End.COMPLETE


def test_decision_0_is_the_latest() -> None:
    ring = DecisionRing()
    assert ring.get(0) is None
    for number in (7, 9):
        ring.add(trace(number, 1))
    latest = ring.get(0)
    assert latest is not None
    assert latest.decision_id == 9

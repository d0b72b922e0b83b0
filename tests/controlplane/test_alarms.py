"""What operators are told is wrong with a worker; the alarm log: a line when something changes, not a line a tick."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from contract.keyspace import EngineState
from controlplane.alarms import AlarmLog, alarm
from controlplane.index_state import IndexState
from tests.controlplane.parts import Plant, endpoint, report


def test_an_alarm_is_logged_when_it_comes_when_it_changes_and_when_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    texts = iter(["", "silent for 1.6 s", "silent for 2.9 s", "breaker open: 5 failures", "", ""])
    alarms = AlarmLog(lambda: [endpoint(0)], lambda one, now: next(texts))
    with caplog.at_level(logging.INFO):
        for now in range(6):
            alarms.look(float(now))
    assert [record.getMessage() for record in caplog.records] == [
        "worker w0: silent for 1.6 s",
        "worker w0: breaker open: 5 failures",
        "worker w0 is well again",
    ]


def test_an_engine_that_answers_nobody_is_named_before_anything_fails_there() -> None:
    plant = Plant(1)
    said = partial(alarm, plant.endpoint(), index_state=IndexState.EXACT, mismatch="", silent_s=0.0)
    assert said(now=plant.now) == ""
    assert "has not answered its agent for 5 s" in said(now=plant.now + 5)
    plant.place()
    assert "may hang: 1 requests" in said(now=plant.now + 12)
    plant.endpoint().breaker.suspect(plant.now + 21, "engine hung")
    assert said(now=plant.now + 21).startswith("breaker open: engine hung")
    plant.snapshot.worker_reported(report("w0", state=EngineState.UNREACHABLE), plant.now + 22)
    assert "unreachable" in said(now=plant.now + 22)

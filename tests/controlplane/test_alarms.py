"""The alarm log: a line when something changes, not a line a tick."""

from __future__ import annotations

import logging

import pytest

from controlplane.alarms import AlarmLog
from tests.controlplane.parts import endpoint


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

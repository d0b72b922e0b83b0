"""How late the loop is, as it is counted."""

from __future__ import annotations

from controlplane.upkeep import LAG_S_MAX, LoopLag


def test_the_worst_since_it_was_asked_last() -> None:
    lag = LoopLag()
    for late_s in (0.001, 0.03, -0.002):
        lag.add(late_s)
    assert lag.worst_s() == 0.03
    assert lag.worst_s() == 0.0, "of the time since then"
    lag.add(0.002)
    assert lag.worst_s() == 0.002


def test_turns_that_were_too_late_are_counted() -> None:
    lag = LoopLag()
    for late_s in (LAG_S_MAX / 2, LAG_S_MAX, 2 * LAG_S_MAX, 1.0):
        lag.add(late_s)
    assert lag.long == 2

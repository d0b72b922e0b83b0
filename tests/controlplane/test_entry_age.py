"""How long reports lay in Redis, by clocks that need not agree."""

from __future__ import annotations

import pytest

from controlplane.entry_age import AGE_S_MAX, EntryAge


@pytest.mark.parametrize("apart_s", [0.0, -3_600.0, 7.25], ids=["equal clocks", "an hour behind", "ahead"])
def test_what_was_read_together_lay_for_as_long_as_the_ids_say(apart_s: float) -> None:
    ages = EntryAge()
    for number in range(20):  # each at once
        assert ages.of(100_000 + 100 * number, 100.0 + 0.1 * number + apart_s) == pytest.approx(0.0, abs=2e-4)
    together = [ages.of(entry_ms, 102.02 + apart_s) for entry_ms in (102_000, 102_005, 102_020)]
    assert together == pytest.approx([0.020, 0.015, 0.0], abs=1e-3)


def test_a_clock_that_was_set_costs_a_bounded_error_for_a_while() -> None:
    ages = EntryAge()
    ages.of(100_000, 100.0)
    assert ages.of(100_100, 105.1) == AGE_S_MAX
    for number in range(60_000):
        age_s = ages.of(100_200 + number, 105.2 + number / 1000)
    assert age_s == pytest.approx(0.0, abs=1e-3)
    assert ages.of(170_000, 160.0) == 0.0, "set back: at once"

"""What chance alone gives is told apart from what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emulator.fidelity import cpu
from emulator.fidelity.compare import Level
from emulator.fidelity.noise import bounds, halves, significant
from emulator.fidelity.recording import Recording
from emulator.fidelity.replay import Undisturbed, retimed
from emulator.fidelity.replay import replay as replayed
from emulator.presets import TINY_CPU
from tests.emulator.recordings import arrivals, recorded


@pytest.fixture(scope="module")
def real() -> Recording:
    return recorded(arrivals(4, 40), Undisturbed)


def test_a_recording_of_more_requests_knows_its_quantiles_better(real: Recording) -> None:
    few = real.only(np.arange(len(real)) % 4 == 0)
    for level, known in bounds(real, samples=200).items():
        widths = [[high - low for low, high in one] for one in (known, bounds(few, samples=200)[level])]
        assert sum(widths[0]) < sum(widths[1])
        assert all(low <= 1 <= high for low, high in known)


def test_requests_that_are_all_alike_leave_nothing_to_chance(real: Recording) -> None:
    same = replace(real, ttft_s=np.full(len(real), 0.2), itl_s=np.full(len(real), 0.01))
    assert all(known == ((1, 1), (1, 1), (1, 1)) for known in bounds(same, samples=20).values())
    found = halves(same, splits=5)
    assert (found.alternate, found.random) == (2, 2.0)


def test_halves_that_differ_do_not_meet_the_target(real: Recording) -> None:
    alternate = np.where(np.arange(len(real)) % 2 == 0, 0.2, 0.4)
    assert halves(replace(real, ttft_s=alternate), splits=5).alternate == 0


def test_a_miss_is_significant_beyond_both_the_target_and_what_is_known() -> None:
    known = ((0.7, 1.4), (0.9, 1.05), (0.98, 1.3))
    level = Level("closed_1", 10, 1, 0.0, (1.0, 1.0, 1.0), (1.3, 1.3, 1.2))
    assert significant(level, known) == ["TTFT p90"]
    assert significant(replace(level, emulated=(1.0, 1.1, 0.95)), known) == []


def test_requests_with_other_times_are_the_same_requests(real: Recording) -> None:
    timings = replayed(real, TINY_CPU, TINY_CPU.batching, Undisturbed())
    slower = retimed(real, replace(timings, ttft_s=timings.ttft_s + 1.0))
    assert slower.prompts == real.prompts
    assert slower.ttft_s == pytest.approx(real.ttft_s + 1.0)
    assert slower.e2e_s == pytest.approx(real.e2e_s + 1.0)


def test_an_engine_without_error_meets_every_level_told_and_none_where_a_slower_machine_is_kept_from_it() -> None:
    few = recorded(arrivals(2, 16), Undisturbed)
    found = cpu.perfect(few, np.array(cpu.CURVE_START), np.full(2, 1.3), recordings=1)
    assert found.over_time == [2]
    assert found.untold == (0, 2)

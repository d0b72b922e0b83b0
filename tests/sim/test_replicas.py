"""Two control planes over one fleet, in virtual time: what it is worth that they tell each other what is in flight."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulation.fleets import FLEETS, Comparison
from simulation.replicas import Replicated
from simulation.summary import figures
from simulation.world import Setup, Simulation
from tests.sim import parts

SETUP = Comparison(duration_s=25.0).setup(FLEETS[0], "lmetric", seed=1)


def p90_s(setup: Setup) -> float:
    report = (Simulation if setup.controls == 1 else Replicated)(setup).run()
    found = figures(report, slo_ttft_s=0.5, workers=[f"worker-{number}" for number in range(len(setup.presets))])
    assert found.complete == found.requests == len(setup.jobs)
    assert found.ttft_s.p90 is not None
    return found.ttft_s.p90


@pytest.mark.parametrize("sharing", ["all", "loads", "none"])
@pytest.mark.parametrize("controls", [2, 3])
def test_nothing_is_lost_and_nothing_left_with_several(controls: int, sharing: str) -> None:
    """The checkers of the simulation look at each control plane, and at the end nobody counts anything of another one."""
    setup = replace(parts.setup(count=120), controls=controls, sharing=sharing)
    report = Replicated(setup).run()
    assert len(report.results) == 120
    assert report.compared_loads > 10


@pytest.mark.slow
def test_two_that_tell_each_other_are_nearly_as_good_as_one_and_two_that_do_not_herd() -> None:
    one = p90_s(SETUP)
    shared = p90_s(replace(SETUP, controls=2, sharing="all"))
    alone = p90_s(replace(SETUP, controls=2, sharing="none"))
    assert shared < 1.25 * one
    assert alone > 1.25 * shared

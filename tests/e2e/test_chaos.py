"""Everything at once: parts killed, frozen and slowed down while requests come at a steady rate; then the accounts are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.chaos import GOOD, chaos

SEED = 20_261_121


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_through_a_storm_every_request_ends_and_the_accounts_agree(tmp_path: Path) -> None:
    report = chaos(tmp_path, seconds=40, requests=1200, seed=SEED, workers=3)
    shown = "\n".join([f"seed {SEED}", *report.lines()])
    assert not report.problems, shown
    assert sum(report.ends[kind] for kind in GOOD) == 1200, shown
    assert report.ends["complete"] > 800, shown
    assert sum(report.faults.values()) >= 8, shown

"""In virtual time as live, a decision knows how far the step is that each engine is in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.features import INDEX
from contract.outcome import Outcome
from controlplane.director import Director
from simulation.control import Parts
from simulation.world import Simulation
from tests.sim import parts


def rows() -> dict[str, list[float]]:
    """Of one run, by request: what was known of the worker that it went to."""
    outcomes: list[Outcome] = []
    Simulation(replace(parts.setup(count=120), parts=Parts(outcome=outcomes.append))).run()
    return {one.request_id: one.features for one in outcomes}


def test_tokens_say_when_a_step_began_where_first_tokens_and_ends_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told = rows()
    # The same run without the word of it: only a simulation whose data plane says nothing could be told so otherwise.
    monkeypatch.setattr(Director, "tokens_came", lambda _director, _ages, _now: None)
    untold = rows()
    assert told.keys() == untold.keys()
    active, age = INDEX["active"], INDEX["step_age_s"]
    pairs = [(told[name][age], untold[name][age]) for name in told if told[name][active]]
    assert all(0.0 <= known <= guessed for known, guessed in pairs)
    assert sum(known < guessed for known, guessed in pairs) > len(pairs) / 4
    assert all(row[age] == 0.0 for row in told.values() if not row[active])

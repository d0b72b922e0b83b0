"""What the thresholds of `hierarchical` are worth: python -m tests.trainer.layers [LOAD]

Simulated fleets of eight workers under chats (simulation.fleets), all alike and half of them slow, at LOAD of their capacity
(default 0.95). One threshold at a time is moved away from its default; `lmetric` for comparison. Printed: TTFT p50 and p90, the
share of requests within the experiment's bound on TTFT.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from controlplane import filters, profiles
from controlplane.profiles import Profile
from controlplane.rankers import ZONE_HIGH_S, ZONE_LOW_S, Layered
from simulation.control import Parts
from simulation.fleets import FLEETS, Comparison
from simulation.world import Simulation

LOWS_S = (0.1, 0.3, 3.0)
HIGHS_S = (3.0, 30.0)
GUARDS = (12, 24)
DURATION_S = 120.0
SEED = 1


def built(active_max: int, low_s: float, high_s: float) -> dict[str, Profile]:
    return profiles.build(active_max=active_max, layered=Layered(low_s=low_s, high_s=high_s))


def main() -> None:
    comparison = Comparison(load=float(sys.argv[1]) if len(sys.argv) > 1 else 0.95, duration_s=DURATION_S)
    usual = (filters.ACTIVE_MAX, ZONE_LOW_S, ZONE_HIGH_S)
    cases = [("lmetric", "", usual), ("hierarchical", "defaults", usual)]
    cases += [("hierarchical", f"zone-low-s {low_s:g}", (usual[0], low_s, usual[2])) for low_s in LOWS_S]
    cases += [("hierarchical", f"zone-high-s {high_s:g}", (usual[0], usual[1], high_s)) for high_s in HIGHS_S]
    cases += [("hierarchical", f"active-max {active_max}", (active_max, *usual[1:])) for active_max in GUARDS]
    print(f"{'fleet':10} {'policy':13} {'threshold':16} {'p50':>8} {'p90':>8} {'within':>7}")
    for fleet in FLEETS[:2]:
        for policy, moved, thresholds in cases:
            setup = replace(comparison.setup(fleet, policy, SEED), parts=Parts(profiles=partial(built, *thresholds)))
            report = Simulation(setup).run()
            found = comparison.figures(fleet, [report])
            ttft = found.ttft_s
            print(
                f"{fleet.name:10} {policy:13} {moved:16} {ttft.p50 or 0.0:6.2f} s {ttft.p90 or 0.0:6.2f} s "
                f"{found.goodput_share:7.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

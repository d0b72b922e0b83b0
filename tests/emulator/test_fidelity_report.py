from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from emulator.fidelity import compare, cpu, figures, noise
from emulator.fidelity.fleet import Rate, Setup
from emulator.fidelity.gpu import Gpu, Run, Steps
from emulator.fidelity.machine import KNOTS_CPU
from emulator.fidelity.replay import Undisturbed, replay
from emulator.fidelity.report import Cpu, render
from emulator.fidelity.routers import routers
from emulator.presets import LLAMA3_8B_H100, TINY_CPU
from tests.emulator.recordings import arrivals, recorded

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_a_report_is_written_from_what_was_measured(tmp_path: Path) -> None:
    asked = arrivals(4, 10)
    real, same = recorded(asked, Undisturbed), replay(asked, TINY_CPU, TINY_CPU.batching, Undisturbed())
    everything = np.ones(len(asked), dtype=np.bool_)
    levels = compare.compare(real, [same], everything)
    calibration = cpu.Calibration(TINY_CPU.batching, np.ones(len(KNOTS_CPU) - 1), np.ones(4), frozenset(), 0.1)
    about_cpu = Cpu(
        draws=[same],
        over_time=levels,
        by_run=levels,
        by_run_quiet=levels[:1],
        shipped=levels[:1],
        repeats=compare.repeats(real, everything),
        apart=compare.apart(real, same, everything),
        controls={"two seats": 0},
        sensitivity={level.name: 1.5 for level in levels},
        calibrations=[calibration, calibration],
        quiet_speeds=np.array([0.9, 1.1]),
        cached_equal=1.0,
        errors=compare.errors(real, [same]),
        known=noise.bounds(real, samples=50),
        halves=noise.Halves(1, 0.5),
        perfect=cpu.Perfect([2, 1], (1, 2)),
    )
    values = np.linspace(0.1, 1.0, 20)
    run = Run(values, [1], [1], values, values)
    latency = LLAMA3_8B_H100.batching
    gpu = Gpu(latency, latency, 1.1, 0.004, run, run, values)
    steps = [Steps("a-model", values, values, 0.01, 3)]
    fleet = [Setup(name, router, 4.0, 1.5, 0.06, [Rate(1.3, values, values)]) for name, router in routers().items()]

    text = render(about_cpu, gpu, steps, fleet)
    rows = [line for line in text.splitlines() if line.startswith("| poisson_")]
    assert len(rows) == 2 * len(levels) - 1  # the second table has quiet levels only
    assert "| poisson_1 | 20 |" in rows[0]
    assert "| met |" in rows[0]
    assert "| two seats | 0 of 2 |" in text
    assert all(f"### `{name}`" in text for name in routers())

    for name, draw in {
        "levels": lambda path: figures.levels(path, levels, levels),
        "distributions": lambda path: figures.distributions(path, real, [same], ["poisson_1", "poisson_2"]),
        "sharegpt": lambda path: figures.sharegpt(path, gpu),
        "steps": lambda path: figures.steps(path, steps),
        "fleet": lambda path: figures.fleet(path, fleet),
    }.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_table_has_the_shipped_constants_and_every_figure() -> None:
    text = (DOCS / "fidelity.md").read_text(encoding="utf-8")
    for name in cpu.CONSTANTS:
        (value,) = re.findall(rf"^\| `{name}` \| .* \| ([^|]+) \|$", text, re.MULTILINE)
        assert value == f"{getattr(TINY_CPU.batching, name):.3g}", name
    found = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(found) == 5
    assert all((DOCS / path).is_file() for path in found)

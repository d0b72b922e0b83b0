"""docs/fidelity.md: what was measured, filled into `fidelity.md.jinja`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined

from emulator.fidelity.compare import BOUNDS, QUIET_CPU_MAX, Level
from emulator.fidelity.cpu import CONSTANTS, Calibration, Perfect, constants_of
from emulator.fidelity.fleet import ALONE_RATES, Setup
from emulator.fidelity.gpu import Gpu, Steps
from emulator.fidelity.machine import KNOTS_CPU, PACE_MAX, STOP_S
from emulator.fidelity.noise import Bounds, Halves, significant
from emulator.fidelity.pace import DRAWS
from emulator.fidelity.recording import Floats
from emulator.fidelity.replay import Timings
from emulator.presets import LLAMA3_8B_H100, TINY_CPU

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Cpu:
    """Everything about the CPU recording."""

    draws: Sequence[Timings]
    over_time: Sequence[Level]
    """Constants from the other half of the levels, speed over time from the other half of the requests; all requests."""
    by_run: Sequence[Level]
    """The same with one speed a run; requests with odd numbers."""
    by_run_quiet: Sequence[Level]
    """The same on quiet runs."""
    shipped: Sequence[Level]
    """The preset and nothing else; quiet runs, all requests."""
    repeats: Sequence[Level]
    """The recorded engine against itself: one run and the level's other runs."""
    apart: Mapping[str, tuple[float, float, float]]
    """The same with arrivals and prompts taken out, by level."""
    controls: Mapping[str, int]
    sensitivity: Mapping[str, float]
    calibrations: Sequence[Calibration]
    quiet_speeds: Floats
    cached_equal: float
    errors: Mapping[str, float]
    known: Mapping[str, Bounds]
    """How well the recording knows its own quantiles, by level."""
    halves: Halves
    perfect: Perfect


def render(cpu: Cpu, gpu: Gpu, steps: Sequence[Steps], fleet: Sequence[Setup]) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters.update(seconds=_seconds, ratios=_ratios, names=_names, met=_met, pairs=_pairs, cells=_cells)
    template = environment.from_string((files(__package__) / "fidelity.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        cpu=cpu,
        gpu=gpu,
        steps=steps,
        fleet=fleet,
        tiny=TINY_CPU.batching,
        h100=LLAMA3_8B_H100.batching,
        bounds=BOUNDS,
        quiet_cpu_max=QUIET_CPU_MAX,
        draws=DRAWS,
        pace_max=PACE_MAX,
        stop_ms=STOP_S * 1e3,
        alone_rates=ALONE_RATES,
        quantiles=[f"p{share * 100:.0f}" for share in QUANTILES],
        constants=_constant_rows(cpu.calibrations),
        curve=list(zip(KNOTS_CPU[1:], np.mean([one.curve for one in cpu.calibrations], axis=0).tolist(), strict=True)),
        quiet={level.name: level for level in cpu.by_run_quiet},
        by_run={level.name: level for level in cpu.by_run},
        itl_apart=float(np.median([third for _, _, third in cpu.apart.values()])),
        speed_spread=float(np.std(np.log(cpu.quiet_speeds))),
        beyond={level.name: significant(level, cpu.known[level.name]) for level in cpu.over_time},
        grid=[float(value) for value in np.quantile(gpu.grid_ratios, (0.1, 0.9))],
    )


def _constant_rows(calibrations: Sequence[Calibration]) -> list[list[str]]:
    columns = [constants_of(one.latency) for one in calibrations] + [constants_of(TINY_CPU.batching)]
    return [[name, *(f"{column[index]:.3g}" for column in columns)] for index, name in enumerate(CONSTANTS)]


def _pairs(recorded: Floats, emulated: Floats, scale: float = 1.0) -> str:
    """Cells of a table: recorded / emulated at each of QUANTILES."""
    both = zip(np.quantile(recorded, QUANTILES) * scale, np.quantile(emulated, QUANTILES) * scale, strict=True)
    return " | ".join(f"{one:.3g} / {other:.3g}" for one, other in both)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.02 else f"{seconds * 1e3:.1f} ms"


def _ratios(level: Level) -> str:
    return _cells(level.ratios)


def _cells(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _met(levels: Sequence[Level]) -> str:
    return f"{sum(level.within for level in levels)} of {len(levels)}"


def _names(levels: Sequence[Level]) -> str:
    """Those that are not met."""
    return ", ".join(f"`{level.name}`" for level in levels if not level.within) or "none"

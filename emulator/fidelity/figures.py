"""The plots of docs/fidelity.md: recorded in grey, emulated in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from emulator.fidelity.compare import BOUNDS, Level
from emulator.fidelity.fleet import Setup
from emulator.fidelity.gpu import Gpu, Steps
from emulator.fidelity.recording import Floats, Recording
from emulator.fidelity.replay import Timings

RECORDED, EMULATED, SECOND = "#444444", "#d1495b", "#00798c"
_PANELS = ("TTFT p50", "TTFT p90", "ITL p50")
_RATIO_MIN = 0.5
"""Ratios beyond it, or its inverse, are drawn at the edge."""


def levels(path: Path, over_time: Sequence[Level], by_run: Sequence[Level]) -> None:
    """Emulated over recorded by level, with the machine's speed known over time and by run."""
    names = [level.name for level in over_time]
    figure = _figure(11, 6.2)
    rows = np.arange(len(names))[::-1]
    for panel, (title, bound) in enumerate(zip(_PANELS, BOUNDS, strict=True)):
        axes = figure.add_subplot(1, 3, panel + 1)
        axes.axvspan(1 - bound, 1 + bound, color="#e8f0e8", label="target")
        axes.axvline(1.0, color=RECORDED, linewidth=0.8)
        once, often = (
            [min(max(level.ratios[panel], _RATIO_MIN), 1 / _RATIO_MIN) for level in found] for found in (by_run, over_time)
        )
        axes.scatter(once, rows, facecolors="none", edgecolors=SECOND, s=60.0, label="one speed a run")
        axes.scatter(often, rows, color=EMULATED, s=25.0, label="speed over time")
        axes.set_xscale("log")
        axes.set_xlim(_RATIO_MIN * 0.97, 1.03 / _RATIO_MIN)
        axes.set_xticks([0.5, 0.7, 0.85, 1, 1.15, 1.4, 2], ["0.5", "0.7", ".85", "1", "1.15", "1.4", "2"])
        axes.minorticks_off()
        axes.set_yticks(rows, names if panel == 0 else [""] * len(names))
        axes.set_title(f"{title}, emulated / recorded", fontsize=10)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        if panel == 2:
            axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def distributions(path: Path, recording: Recording, draws: Sequence[Timings], names: Sequence[str]) -> None:
    """TTFT and ITL of single levels, as cumulative shares; emulated: all draws together."""
    figure = _figure(11, 5.6)
    at = np.array(recording.levels)
    for column, name in enumerate(names):
        here = at == name
        for line, (kind, label) in enumerate((("ttft_s", "TTFT (ms)"), ("itl_s", "median ITL (ms)"))):
            axes = figure.add_subplot(2, len(names), line * len(names) + column + 1)
            _shares(axes, getattr(recording, kind)[here] * 1e3, RECORDED, "recorded")
            _shares(axes, np.concatenate([getattr(one, kind)[here] for one in draws]) * 1e3, EMULATED, "emulated")
            axes.set_xlabel(label, fontsize=8)
            axes.tick_params(labelsize=8)
            if not line:
                axes.set_xscale("log")
                axes.set_xlim(20, 12_000)
                axes.set_xticks([100, 1_000, 10_000], ["100", "1,000", "10,000"])
                axes.minorticks_off()
                axes.set_title(f"{name} ({int(here.sum())} requests)", fontsize=9)
            else:
                axes.set_xlim(2, 30)
            if not column:
                axes.set_ylabel("share of requests", fontsize=8)
                axes.legend(fontsize=7, loc="lower right")
    _save(figure, path)


def steps(path: Path, found: Sequence[Steps]) -> None:
    figure = _figure(9, 3.6)
    for column, one in enumerate(found):
        axes = figure.add_subplot(1, len(found), column + 1)
        _shares(axes, one.recorded_s * 1e3, RECORDED, f"recorded ({len(one.recorded_s)} steps)")
        _shares(axes, one.computed_s * 1e3, EMULATED, "kernels x factor")
        axes.axvline(one.weights_s * 1e3, color="#999999", linestyle=":", label="weights read once")
        axes.set_xlim(one.weights_s * 0.9e3, 30)
        axes.set_title(one.model, fontsize=10)
        axes.set_xlabel("step (ms)")
        axes.set_ylabel("share of steps")
        axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def sharegpt(path: Path, gpu: Gpu) -> None:
    figure = _figure(9, 3.6)
    pairs = (
        (gpu.run.ttft_s, gpu.emulated.ttft_s, "TTFT (s), compared"),
        (gpu.run.tpot_s * 1e3, gpu.emulated.tpot_s * 1e3, "time per output token (ms), median fitted"),
    )
    for column, (recorded, emulated, label) in enumerate(pairs):
        axes = figure.add_subplot(1, 2, column + 1)
        _shares(axes, recorded, RECORDED, "recorded")
        _shares(axes, emulated, EMULATED, "emulated")
        axes.set_xlabel(label)
        axes.set_ylabel("share of requests")
        axes.legend(fontsize=8, loc="lower right" if not column else "upper left")
    _save(figure, path)


def fleet(path: Path, found: Sequence[Setup]) -> None:
    """TTFT by rate, a panel for each router."""
    figure = _figure(11, 6.2)
    for number, setup in enumerate(found):
        axes = figure.add_subplot(2, 3, number + 1)
        rates = [rate.qps for rate in setup.rates]
        for share, style in ((0.5, "-"), (0.9, "--")):
            for kind, colour in (("recorded", RECORDED), ("emulated", EMULATED)):
                values = [np.quantile(getattr(rate, f"{kind}_s"), share) for rate in setup.rates]
                axes.plot(rates, values, style, color=colour, label=f"p{share * 100:.0f} {kind}")
        axes.set_yscale("log")
        axes.set_ylim(0.03, 120)
        axes.set_title(f"{setup.name}\n({setup.router.says})", fontsize=9)
        if number >= 3:
            axes.set_xlabel("requests a second, eight workers")
        if number % 3 == 0:
            axes.set_ylabel("TTFT (s)")
        if not number:
            axes.legend(fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    with mpl.rc_context({"font.size": 9}):
        return Figure(figsize=(width, height), layout="constrained")


def _shares(axes: Any, values: Floats, colour: str, label: str) -> None:
    ordered = np.sort(values[np.isfinite(values)])
    axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colour, label=label)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

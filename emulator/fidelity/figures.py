"""The plots of docs/fidelity.md: recorded in grey, emulated in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from emulator.fidelity.cpu import Level
from emulator.fidelity.fleet import Fleet
from emulator.fidelity.gpu import Gpu, Steps
from emulator.fidelity.recording import Floats, Recording
from emulator.fidelity.replay import Timings

RECORDED, EMULATED, SECOND = "#444444", "#d1495b", "#00798c"
_PANELS = (("TTFT p50", 0.15), ("TTFT p90", 0.15), ("ITL p50", 0.10))
_RATIO_MAX = 2.0


def levels(path: Path, validated: Sequence[Level], quiet: Sequence[Level]) -> None:
    """Emulated over recorded by level."""
    names = [level.name for level in validated]
    figure = _figure(11, 6.2)
    still = {level.name: level for level in quiet}
    for panel, (title, bound) in enumerate(_PANELS):
        axes = figure.add_subplot(1, 3, panel + 1)
        axes.axvspan(1 - bound, 1 + bound, color="#e8f0e8", label=f"within {bound:.0%}")
        axes.axvline(1.0, color=RECORDED, linewidth=0.8)
        rows = np.arange(len(names))[::-1]
        axes.scatter(
            np.clip([level.ratios[panel] for level in validated], 1 / _RATIO_MAX, _RATIO_MAX),
            rows,
            color=EMULATED,
            label="all runs",
        )
        shown = [(still[name].ratios[panel], row) for name, row in zip(names, rows, strict=True) if name in still]
        ratios, places = [ratio for ratio, _ in shown], [place for _, place in shown]
        axes.scatter(ratios, places, facecolors="none", edgecolors=SECOND, s=70, label="quiet runs")
        axes.set_xscale("log")
        axes.set_xlim(1 / _RATIO_MAX, _RATIO_MAX)
        axes.set_xticks([0.5, 0.7, 0.85, 1, 1.15, 1.4, 2], ["0.5", "0.7", ".85", "1", "1.15", "1.4", "2"])
        axes.minorticks_off()
        axes.set_yticks(rows, names if panel == 0 else [""] * len(names))
        axes.set_title(f"{title}, emulated / recorded", fontsize=10)
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        if panel == 0:
            axes.legend(fontsize=8, loc="lower left")
    _save(figure, path)


def distributions(path: Path, recording: Recording, timings: Timings, rows: Any, names: Sequence[str]) -> None:
    """TTFT and ITL of single levels, as cumulative shares."""
    figure = _figure(11, 5.6)
    at = np.array(recording.levels)
    for column, name in enumerate(names):
        here = rows & (at == name)
        pairs = ((recording.ttft_s, timings.ttft_s, "TTFT"), (recording.itl_s, timings.itl_s, "median ITL"))
        for line, (recorded, emulated, label) in enumerate(pairs):
            axes = figure.add_subplot(2, len(names), line * len(names) + column + 1)
            _shares(axes, recorded[here], RECORDED, "recorded")
            _shares(axes, emulated[here], EMULATED, "emulated")
            axes.set_xlabel(f"{label} (s)", fontsize=8)
            axes.tick_params(labelsize=8)
            if not line:
                axes.set_xscale("log")
                axes.set_title(f"{name} ({int(here.sum())})", fontsize=9)
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
        axes.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def sharegpt(path: Path, gpu: Gpu) -> None:
    figure = _figure(9, 3.6)
    pairs = (
        (gpu.run.ttft_s, gpu.emulated.ttft_s, "TTFT (s), compared"),
        (gpu.run.tpot_s, gpu.emulated.tpot_s, "time per output token (s), median fitted"),
    )
    for column, (recorded, emulated, label) in enumerate(pairs):
        axes = figure.add_subplot(1, 2, column + 1)
        _shares(axes, recorded, RECORDED, "recorded")
        _shares(axes, emulated, EMULATED, "emulated")
        axes.set_xlabel(label)
        axes.legend(fontsize=8, loc="lower right" if not column else "upper left")
    _save(figure, path)


def fleet(path: Path, found: Fleet) -> None:
    figure = _figure(9, 3.8)
    axes = figure.add_subplot(1, 1, 1)
    rates = [rate.qps for rate in found.rates]
    for share, style in ((0.5, "-"), (0.9, "--"), (0.25, ":")):
        name = f"p{share * 100:.0f}"
        axes.plot(
            rates,
            [np.quantile(rate.recorded_s, share) for rate in found.rates],
            style,
            color=RECORDED,
            label=f"{name} recorded",
        )
        axes.plot(
            rates,
            [np.quantile(rate.emulated_s, share) for rate in found.rates],
            style,
            color=EMULATED,
            label=f"{name} emulated",
        )
    axes.set_yscale("log")
    axes.set_xlabel("requests a second, eight workers")
    axes.set_ylabel("TTFT (s)")
    axes.legend(fontsize=8, ncol=3)
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

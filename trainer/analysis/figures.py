"""Drawings of the findings, as PNG. Colours are Okabe and Ito's, which colour-blind readers tell apart; shapes differ too."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from prediction import zones
from trainer.analysis.findings import Findings
from trainer.analysis.knee import FROM_S, TO_S, Knee
from trainer.analysis.signals import UNITS
from trainer.analysis.states import CLUSTERS, States

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D")
GREY = "#6b6b6b"
DPI = 110
PALETTE = 256
"""Colours in a file: a third of the bytes."""
STEPS = 20
"""Of correlation's colours."""
BOXES = ("ttft_s", "input_tokens", "uncached_tokens", "active", "prefill_tokens", "context_tokens", "running", "kv_usage")
Side = Literal["outside lower left", "outside lower right"]
LEFT: Side = "outside lower left"
RIGHT: Side = "outside lower right"
SHOWN_MAX = 12
"""Signals in a bar chart."""


def all_of(findings: Findings) -> dict[str, bytes]:
    """PNG by file name."""
    drawings: dict[str, Callable[[Findings], Figure]] = {
        "optimal_k.png": optimal_k,
        "cluster_tsne.png": cluster_tsne,
        "cluster_pca.png": cluster_pca,
        "cluster_boxplots.png": cluster_boxplots,
        "importance.png": importance,
        "correlation.png": correlation,
    }
    if findings.knees:
        drawings["knee.png"] = knee
    return {name: _png(draw(findings)) for name, draw in drawings.items()}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context({"font.size": 10}):
        figure.savefig(out, format="png", dpi=DPI)
    small = io.BytesIO()
    Image.open(out).convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _plain(axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _legend_below(figure: Figure, axes: Any, side: Side) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc=side, ncols=2, frameon=False, fontsize=9, markerscale=2.2)


def _label(name: str) -> str:
    unit = UNITS.get(name, "")
    return f"{name} ({unit})" if unit else name


def optimal_k(findings: Findings) -> Figure:
    states = findings.states
    figure = _figure(9, 3.6)
    left, right = (_plain(axes) for axes in figure.subplots(1, 2))
    ks = sorted(states.inertia_by_k)
    left.plot(ks, [states.inertia_by_k[k] for k in ks], color=COLOURS[0], marker="o")
    left.axvline(states.elbow_k, color=COLOURS[5], linestyle="--", label=f"elbow: K = {states.elbow_k}")
    left.set(xlabel="K (clusters)", ylabel="inertia (squared distance to the centres)", title="Elbow")
    left.set_ylim(bottom=0)
    left.yaxis.set_major_formatter("{x:,.0f}")
    right.plot(
        list(states.silhouette_by_k), list(states.silhouette_by_k.values()), color=COLOURS[0], marker="o", label="silhouette"
    )
    right.axvline(states.silhouette_k, color=COLOURS[5], linestyle="--", label=f"best: K = {states.silhouette_k}")
    right.set(xlabel="K (clusters)", ylabel="mean silhouette (-1 to 1)", title="Silhouette")
    for axes in (left, right):
        if CLUSTERS in ks:
            axes.axvline(CLUSTERS, color=GREY, linestyle=":", label=f"used: K = {CLUSTERS}")
        axes.legend(frameon=False)
    left.set_xticks(ks)
    right.set_xticks(list(states.silhouette_by_k))
    return figure


def _clusters(axes: Any, points: Any, cluster: Any, states: States) -> None:
    for number in range(int(states.cluster.max()) + 1):
        inside = cluster == number
        share = float(np.mean(states.cluster == number))
        axes.scatter(
            *points[inside].T,
            s=9,
            alpha=0.55,
            linewidths=0,
            color=COLOURS[number],
            marker=MARKERS[number % len(MARKERS)],
            label=f"cluster {number} ({share:.0%})",
        )


def _zones(axes: Any, points: Any, zone: Any) -> None:
    words = ("low < 1 s", "medium 1 to 10 s", "high ≥ 10 s")
    for place, (colour, marker) in enumerate(zip((COLOURS[0], COLOURS[1], COLOURS[5]), MARKERS, strict=False)):
        inside = zone == place
        if inside.any():
            axes.scatter(*points[inside].T, s=9, alpha=0.55, linewidths=0, color=colour, marker=marker, label=words[place])


def cluster_tsne(findings: Findings) -> Figure:
    states = findings.states
    figure = _figure(10, 4.6)
    left, right = (_plain(axes) for axes in figure.subplots(1, 2))
    _clusters(left, states.tsne, states.cluster[states.tsne_rows], states)
    _zones(right, states.tsne, findings.signals.zone[states.tsne_rows])
    for axes, what, side in ((left, "by cluster", LEFT), (right, "by zone of TTFT", RIGHT)):
        axes.set(xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", title=f"{len(states.tsne)} states, {what}")
        _legend_below(figure, axes, side)
    return figure


def cluster_pca(findings: Findings) -> Figure:
    states = findings.states
    figure = _figure(10, 4.6)
    left, right = (_plain(axes) for axes in figure.subplots(1, 2))
    some = states.tsne_rows
    _clusters(left, states.pca[some], states.cluster[some], states)
    left.set(
        xlabel=f"component 1 ({states.explained[0]:.0%} of the variance)",
        ylabel=f"component 2 ({states.explained[1]:.0%})",
        title=f"Principal components, {len(some)} states",
    )
    places = np.arange(len(states.names))
    right.barh(places - 0.2, states.loadings[0], height=0.4, color=COLOURS[0], label="component 1")
    right.barh(places + 0.2, states.loadings[1], height=0.4, color=COLOURS[1], label="component 2")
    right.set_yticks(places, states.names)
    right.set(xlabel="loading (-1 to 1)", title="What they are made of")
    _legend_below(figure, right, RIGHT)
    _legend_below(figure, left, LEFT)
    return figure


def cluster_boxplots(findings: Findings) -> Figure:
    states, signals = findings.states, findings.signals
    figure = _figure(12, 5.6)
    groups = [states.cluster == number for number in range(int(states.cluster.max()) + 1)]
    for axes, name in zip(figure.subplots(2, 4).flat, BOXES, strict=True):
        values = signals.ttft_s if name == "ttft_s" else signals.columns[name]
        boxes = _plain(axes).boxplot(
            [values[inside] for inside in groups],
            tick_labels=[str(number) for number in range(len(groups))],
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.6},
            whis=(5, 95),
        )
        for patch, colour in zip(boxes["boxes"], COLOURS, strict=False):
            patch.set_facecolor(colour)
            patch.set_alpha(0.7)
        if name == "ttft_s":
            axes.set_yscale("log")
            for edge in zones.EDGES_S:
                axes.axhline(edge, color=GREY, linestyle=":", linewidth=0.9)
        axes.set(xlabel="cluster", ylabel=_label(name))
    figure.suptitle("Clusters, by ascending median TTFT (box: quartiles; whiskers: 5 to 95 %)", fontsize=11)
    return figure


def importance(findings: Findings) -> Figure:
    found = findings.importance
    names = sorted(found.permuted, key=lambda name: found.permuted[name])[-SHOWN_MAX:]
    figure = _figure(10, 4.4)
    left, right = (_plain(axes) for axes in figure.subplots(1, 2, sharey=True))
    left.barh(names, [found.permuted[name] for name in names], color=COLOURS[0])
    left.set(xlabel="fall of held-out R² of log TTFT when permuted", title=f"Permutation (R² with all: {found.r2:.3f})")
    right.barh(names, [found.gain[name] for name in names], color=COLOURS[1])
    right.set(xlabel="share of the gain of LightGBM's splits", title="Gain")
    return figure


def _two_digits(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def correlation(findings: Findings) -> Figure:
    columns = ("all", *zones.ZONES)
    found = findings.correlations
    names = sorted(found, key=lambda name: np.nan_to_num(abs(found[name]["all"].spearman)), reverse=True)
    figure = _figure(10, 0.34 * len(names) + 1.6)
    both = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(both, ("pearson", "spearman"), strict=True):
        values = np.array([[getattr(found[name][zone], kind) for zone in columns] for name in names])
        image = axes.imshow(values, cmap=mpl.colormaps["PuOr"].resampled(STEPS), vmin=-1, vmax=1, aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            text = "–" if np.isnan(value) else _two_digits(float(value))
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if abs(value) > 0.6 else "black")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="zone of TTFT", title=f"{kind.capitalize()} with TTFT")
    figure.colorbar(image, ax=list(both), label="correlation (-1 to 1)", shrink=0.8)
    return figure


def knee(findings: Findings) -> Figure:
    count = len(findings.knees)
    figure = _figure(4.3 * count, 3.8)
    for axes, found in zip(np.atleast_1d(figure.subplots(1, count)), findings.knees, strict=True):
        _plain(axes).plot(found.load, found.median_s, "o", color=COLOURS[0], markersize=4, alpha=0.7, label="median of a bin")
        axes.plot(found.load, found.smooth_s, color=COLOURS[5], label="non-decreasing fit")
        for bound, at in ((FROM_S, found.at_from), (TO_S, found.at_to)):
            axes.axhline(bound, color=GREY, linestyle=":", linewidth=0.9)
            if np.isfinite(at):
                axes.axvline(at, color=GREY, linestyle="--", linewidth=0.9)
        if found.signal.endswith("_tokens"):
            axes.set_xscale("symlog", linthresh=100)
            axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.set(xlabel=_label(found.signal), ylabel="median TTFT (s)", title=_turn(found))
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _turn(found: Knee) -> str:
    """Where each bound is crossed, as a title."""
    crossed = [
        f"{bound:g} s at {at:,.0f}" if at >= 100 else f"{bound:g} s at {at:.3g}"
        for bound, at in ((FROM_S, found.at_from), (TO_S, found.at_to))
        if np.isfinite(at)
    ]
    return ", ".join(crossed) or f"{FROM_S:g} to {TO_S:g} s is not crossed"

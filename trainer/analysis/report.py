"""The text beside the drawings: one list of parts, written as Markdown and as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prediction import zones
from trainer.analysis import figures, relations
from trainer.analysis.findings import Findings
from trainer.analysis.knee import FROM_S, TO_S, Knee
from trainer.analysis.signals import UNITS
from trainer.analysis.states import CLUSTERS

MARKDOWN = "report.md"
HTML = "report.html"
RANKED = 3
"""Signals named for each zone."""
WORDS = {"low": "< 1 s", "medium": "1 to 10 s", "high": "≥ 10 s"}


_ABOUT = (
    "Signals are what the router knew when it decided; TTFT counts from sending the request to its endpoint. "
    "Times are in the fleet's own time."
)
_ABOUT_ZONES = (
    "Busy, reported idle: of the requests sent to a worker where the router had others (active > 0), the share that found a "
    "report of the engine with nothing running and nothing waiting."
)
_ABOUT_CORRELATIONS = (
    "Pearson / Spearman, in each zone apart. A dash: the signal does not vary there, or there are fewer than 30 rows. "
    "Three are made of others: work_tokens is the prefill work queued at the worker and the request's own; work_s the time it "
    "takes at the speed that the router learned of the worker; foreseen_s is begins_s, when the engine would begin with it as "
    "the router foresees queue and seats, and the request's own work at that speed."
)
_ABOUT_IMPORTANCE = (
    "Permutation: how much that falls when one signal is shuffled. Signals that say the same share the loss, and the gain, "
    "between them."
)
_ABOUT_KNEE = (
    "Rows are sorted by load and cut into up to 40 bins of equal size; the bins' medians are fitted by a curve that does not "
    "fall (isotonic regression on log seconds), and its crossings are given."
)


@dataclass(frozen=True, slots=True)
class Table:
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Drawing:
    file: str
    about: str


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    level: int = 2


Part = Heading | str | Table | Drawing
"""A str is a paragraph."""


def write(findings: Findings, out: Path) -> list[Path]:
    """The figures and both reports. OSError."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.all_of(findings)
    parts = parts_of(findings, set(drawn))
    texts = {MARKDOWN: markdown(parts), HTML: as_html(parts, drawn, title=f"State space of {findings.name}")}
    for name, picture in drawn.items():
        (out / name).write_bytes(picture)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in (*texts, *drawn)]


# ------------------------------------------------------------------------------------------------------------------- content


def parts_of(findings: Findings, drawn: set[str]) -> list[Part]:
    parts: list[Part] = [
        Heading(f"State space of {findings.name}", 1),
        f"{len(findings.signals)} requests that streamed to their end. {_ABOUT}",
        *_zones(findings),
        *_correlations(findings),
        *_importance(findings),
    ]
    if "knee.png" in drawn:
        parts += _knees(findings.knees)
    return parts + _states(findings)


def _zones(findings: Findings) -> list[Part]:
    signals = findings.signals
    rows = []
    for place, name in enumerate(zones.ZONES):
        ttft_s = signals.ttft_s[signals.zone == place]
        share = f"{len(ttft_s) / len(signals):.1%}"
        quantiles = [_number(float(value)) for value in np.quantile(ttft_s, (0.1, 0.5, 0.9))] if len(ttft_s) else ["–"] * 3
        medians = [_median(findings, signal, place) for signal in ("active", "prefill_tokens", "running", "waiting")]
        unseen = _unseen(findings, place)
        rows.append((f"{name} ({WORDS[name]})", str(len(ttft_s)), share, *quantiles, *medians, unseen))
    head = (
        "zone",
        "rows",
        "share",
        "TTFT p10 (s)",
        "p50",
        "p90",
        "active p50",
        "prefill_tokens p50",
        "running p50",
        "waiting p50",
        "busy, reported idle",
    )
    return [Heading("Zones"), Table(head, rows), _ABOUT_ZONES]


def _unseen(findings: Findings, place: int) -> str:
    """Of the requests that were sent to a busy worker: how many found a report by which it was idle."""
    columns = findings.signals.columns
    busy = (columns["active"] > 0) & (findings.signals.zone == place)
    idle = (columns["running"] == 0) & (columns["waiting"] == 0)
    return f"{float(np.mean(idle[busy])):.1%}" if busy.any() else "–"


def _median(findings: Findings, signal: str, place: int) -> str:
    values = findings.signals.columns[signal][findings.signals.zone == place]
    return _number(float(np.median(values))) if len(values) else "–"


def _correlations(findings: Findings) -> list[Part]:
    found = findings.correlations
    names = sorted(found, key=lambda name: np.nan_to_num(abs(found[name]["all"].spearman)), reverse=True)
    columns = ("all", *zones.ZONES)
    rows = [
        (name, *(f"{_share(found[name][zone].pearson)} / {_share(found[name][zone].spearman)}" for zone in columns))
        for name in names
    ]
    return [
        Heading("Which signal goes with TTFT"),
        _ABOUT_CORRELATIONS,
        Table(("zone", "ranks TTFT best (Spearman)", "second", "third"), [_ranks(findings, zone) for zone in columns]),
        Drawing("correlation.png", "Correlation of each signal with TTFT, by zone"),
        Table(("signal", *columns), rows),
    ]


def _ranks(findings: Findings, zone: str) -> tuple[str, ...]:
    found = findings.correlations
    names = [f"{name} ({_share(found[name][zone].spearman)})" for name in relations.best(found, zone)[:RANKED]]
    return (zone, *names, *["–"] * (RANKED - len(names)))


def _importance(findings: Findings) -> list[Part]:
    found = findings.importance
    names = sorted(found.permuted, key=lambda name: found.permuted[name], reverse=True)
    rows = [(name, UNITS.get(name, ""), f"{found.permuted[name]:.4f}", f"{found.gain[name]:.1%}") for name in names]
    return [
        Heading("What a model leans on"),
        f"LightGBM on log TTFT; held-out R² {found.r2:.3f}. {_ABOUT_IMPORTANCE}",
        Drawing("importance.png", "Importance of the signals"),
        Table(("signal", "unit", "loss of R² when permuted", "share of gain"), rows),
    ]


def _knees(knees: Sequence[Knee]) -> list[Part]:
    rows = [
        (knee.signal, UNITS.get(knee.signal, ""), _crossed(knee.at_from, knee, FROM_S), _crossed(knee.at_to, knee, TO_S))
        for knee in knees
    ]
    return [
        Heading("The knee"),
        f"Where the median TTFT turns from {FROM_S:g} to {TO_S:g} s. {_ABOUT_KNEE}",
        Drawing("knee.png", "Median TTFT against load"),
        Table(("load", "unit", f"median TTFT passes {FROM_S:g} s at", f"passes {TO_S:g} s at"), rows),
    ]


def _crossed(at: float, knee: Knee, bound_s: float) -> str:
    if math.isfinite(at):
        return _number(at)
    return (
        "above it from the start" if knee.smooth_s[0] >= bound_s else f"never (at most {_number(float(knee.smooth_s[-1]))} s)"
    )


def _states(findings: Findings) -> list[Part]:
    states, signals = findings.states, findings.signals
    rows = []
    shown = ("input_tokens", "active", "prefill_tokens", "running", "kv_usage")
    for number in range(int(states.cluster.max()) + 1):
        inside = states.cluster == number
        ttft_s = signals.ttft_s[inside]
        split = " / ".join(f"{float(np.mean(signals.zone[inside] == place)):.0%}" for place in range(len(zones.ZONES)))
        medians = [_number(float(np.nanmedian(signals.columns[name][inside]))) for name in shown]
        rows.append((str(number), f"{float(np.mean(inside)):.1%}", _number(float(np.median(ttft_s))), split, *medians))
    silhouettes = ", ".join(f"{k}: {value:.3f}" for k, value in states.silhouette_by_k.items())
    used = f"K-means, log(1 + x) of each signal, standardised: {', '.join(states.names)}."
    best = f"the best silhouette at K = {states.silhouette_k} ({silhouettes})"
    chosen = f"The elbow of the inertia is at K = {states.elbow_k}, {best}."
    return [
        Heading("States"),
        used,
        f"{chosen} K = {CLUSTERS} is used for what follows.",
        Drawing("optimal_k.png", "Choice of K"),
        Drawing("cluster_tsne.png", "States in two dimensions (t-SNE)"),
        Drawing("cluster_pca.png", "Principal components"),
        Drawing("cluster_boxplots.png", "Clusters"),
        Table(("cluster", "rows", "TTFT p50 (s)", "low / medium / high", *(f"{name} p50" for name in shown)), rows),
    ]


def _number(value: float) -> str:
    """Three digits that count."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")


# --------------------------------------------------------------------------------------------------------------------- forms


def markdown(parts: Sequence[Part]) -> str:
    return "\n\n".join(_markdown(part) for part in parts) + "\n"


def _markdown(part: Part) -> str:
    match part:
        case Heading(text=text, level=level):
            return f"{'#' * level} {text}"
        case Drawing(file=file, about=about):
            return f"![{about}]({file})"
        case Table(head=head, rows=rows):
            lines = [head, ("---",) * len(head), *rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case _:
            return part


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
h1 { font-size: 1.7rem } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ccc }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; font-size: .88rem }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { vertical-align: bottom }
table.numbers :is(th, td):not(:first-child) { text-align: right } table.numbers td { white-space: nowrap }
td { min-width: 4.5rem } td code { overflow-wrap: normal }
code { font-size: .88em; background: #f3f3f1; padding: .05em .25em; border-radius: 3px; overflow-wrap: anywhere }
pre { background: #f3f3f1; padding: .7rem 1rem; overflow-x: auto; border-radius: 4px } pre code { padding: 0 }
figure { margin: 1.2rem 0 } img { max-width: 100% } figcaption { color: #555; font-size: .9rem }
"""


TABLE_BEGINS, TABLE_ENDS = '<div class="wide" tabindex="0" role="region" aria-label="table">', "</div>"
"""Around a table: where it is wider than the window it is moved, not the page."""


def as_html(parts: Sequence[Part], drawn: Mapping[str, bytes], *, title: str) -> str:
    body = "\n".join(_html(part, drawn) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part, drawn: Mapping[str, bytes]) -> str:
    match part:
        case Heading(text=text, level=level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Drawing(file=file, about=about):
            data = base64.b64encode(drawn[file]).decode()
            about = html.escape(about)
            return f'<figure><img alt="{about}" src="data:image/png;base64,{data}"><figcaption>{about}</figcaption></figure>'
        case Table(head=head, rows=rows):
            lines = [_row("th", head), *(_row("td", row) for row in rows)]
            return f'{TABLE_BEGINS}<table class="numbers">\n{chr(10).join(lines)}\n</table>{TABLE_ENDS}'
        case _:
            return f"<p>{html.escape(part)}</p>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in texts) + "</tr>"

"""TTFT distributions of several policies, as one SVG file that needs nothing else to be looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

HEIGHT = 460
LEFT, TOP, BOTTOM = 64, 56, 56
CURVES_WIDTH = 606
LEGEND_WIDTH_MIN = 250
LETTER_PX = 6.8
"""Of text, at most on average, per 12 px of its size; what it takes is known only to whoever draws it."""
TITLE_PX = 15.0
LABEL_PX_MIN = 54.0
POINTS_MAX = 400
"""Of a curve: more than pixels would show."""
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#444444",
    "#7a5195",
    "#8c6d31",
    "#bc5090",
    "#2f8f9d",
)
"""Apart for most kinds of colour vision; policies beyond them repeat the row with dashes."""


def ttft_cdf(
    curves: Mapping[str, Sequence[float]], *, requests: Mapping[str, int], title: str, slo_s: float | None = None
) -> str:
    """curves: TTFTs in seconds by policy; requests: how many were asked for, so that a curve ends below 1 where some were not
    served. ValueError: no TTFT at all."""
    values = [value for ttfts in curves.values() for value in ttfts if value > 0]
    if not values:
        raise ValueError("there is no TTFT to draw")
    low, high = _decades(min(values), max(values))
    axis = _Axis(low, high)
    medians = {policy: _median(sorted(ttfts)) for policy, ttfts in curves.items()}
    longest = max(len(policy + median) for policy, median in medians.items())
    parts = [_head(title, LEFT + CURVES_WIDTH + max(LEGEND_WIDTH_MIN, round(50 + LETTER_PX * longest))), *_grid(axis)]
    if slo_s is not None and 10**low <= slo_s <= 10**high:
        parts.append(_slo(axis, slo_s))
    for place, (policy, ttfts) in enumerate(curves.items()):
        parts += _curve(axis, place, policy, sorted(ttfts), requests[policy], medians[policy])
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Seconds to pixels, logarithmic from 10**low to 10**high; shares to pixels."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-9)) - self.low) / (self.high - self.low)
        return LEFT + min(1.0, max(0.0, share)) * CURVES_WIDTH

    def y(self, share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _decades(low: float, high: float) -> tuple[float, float]:
    """Bounds at 1, 2 or 5 times a power of ten, as logarithms."""
    steps = [math.log10(digit * 10.0**power) for power in range(-6, 7) for digit in (1, 2, 5)]
    begin = max((step for step in steps if step <= math.log10(low)), default=steps[0])
    end = min((step for step in steps if step >= math.log10(high)), default=steps[-1])
    return begin, end if end > begin else begin + 1.0


def _head(title: str, width: int) -> str:
    """Titles are made smaller rather than cut."""
    size = min(TITLE_PX, 12 * (width - LEFT) / (1.15 * LETTER_PX * max(1, len(title))))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>\n'
        f'<text x="{LEFT}" y="26" font-size="{size:.1f}" font-weight="600">{escape(title)}</text>'
    )


def _grid(axis: _Axis) -> list[str]:
    bottom, right = axis.y(0.0), LEFT + CURVES_WIDTH
    parts = []
    labelled = -LABEL_PX_MIN
    for power in range(-6, 7):
        for digit in (1, 2, 5):
            seconds = digit * 10.0**power
            if axis.low - 1e-9 <= math.log10(seconds) <= axis.high + 1e-9:
                x = axis.x(seconds)
                parts.append(f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" stroke="#e4e4e4"/>')
                if x - labelled >= LABEL_PX_MIN:
                    labelled = x
                    parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{_label(seconds)}</text>')
    for tenth in (0, 25, 50, 75, 90, 100):
        y = axis.y(tenth / 100)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tenth} %</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 14}" text-anchor="middle">time to first token, from arrival</text>')
    parts.append(f'<text x="{LEFT - 8}" y="{TOP - 12}" text-anchor="end" fill="#666">requests</text>')
    return parts


def _label(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _slo(axis: _Axis, slo_s: float) -> str:
    x = axis.x(slo_s)
    return (
        f'<path d="M{x:.1f} {TOP}V{axis.y(0.0):.1f}" stroke="#999" stroke-dasharray="2 3"/>'
        f'<text x="{x + 4:.1f}" y="{TOP + 10}" fill="#666">SLO</text>'
    )


def _median(ttfts: Sequence[float]) -> str:
    """In words, after a name; ttfts: sorted."""
    return f", p50 {_label(float(f'{ttfts[(len(ttfts) - 1) // 2]:.3g}'))}" if ttfts else ""


def _curve(axis: _Axis, place: int, policy: str, ttfts: Sequence[float], requests: int, median: str) -> list[str]:
    colour = COLOURS[place % len(COLOURS)]
    dash = ' stroke-dasharray="6 3"' if place >= len(COLOURS) else ""
    count = len(ttfts)
    picked = range(count) if count <= POINTS_MAX else (round(i * (count - 1) / (POINTS_MAX - 1)) for i in range(POINTS_MAX))
    points = [(axis.x(ttfts[i]), axis.y((i + 1) / max(1, requests))) for i in picked]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    y = TOP + 10 + 20 * place
    x = LEFT + CURVES_WIDTH + 18
    return [
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>',
        f'<path d="M{x} {y}h20" stroke="{colour}" stroke-width="3"{dash}/>',
        f'<text x="{x + 26}" y="{y + 4}">{escape(policy)}<tspan fill="#777">{median}</tspan></text>',
    ]

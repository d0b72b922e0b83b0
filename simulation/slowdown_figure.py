"""The slowdown experiment as one SVG file: the sliding p90 of TTFT of each curve, and the band for the live one to reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from simulation.slowdown import LIVE, ORACLE, PLAIN, WITHIN_S, WITHIN_SHARE, Point

WIDTH, HEIGHT = 900, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 240, 76, 56
STEPS = 5
_OPEN = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
    'font-family="system-ui, sans-serif" font-size="12" fill="#222">'
)
COLOURS = {LIVE: "#0072b2", ORACLE: "#009e73", PLAIN: "#d55e00"}
NAMES = {
    LIVE: ("predictive, live", "model of the fleet as it was,", "corrected by every first token"),
    ORACLE: ("oracle", "slow from the start, and a", "model trained on that state"),
    PLAIN: ("lmetric", "tokens and requests, no speeds", ""),
}


def slowdown_svg(points: Sequence[Point], *, title: str, subtitle: str) -> str:
    """points: in the order of time, all with the three curves. ValueError: none."""
    if not points:
        raise ValueError("there is nothing to draw")
    axis = _Axis(points)
    parts = [
        _OPEN,
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT}" y="46" fill="#666">{escape(subtitle)}</text>',
        *_grid(axis),
        _band(axis, points),
        *_marks(axis),
    ]
    for place, curve in enumerate((PLAIN, ORACLE, LIVE)):
        parts.append(_line(axis, points, curve))
        parts += _legend(place, curve)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Seconds from the slowdown, and seconds of TTFT from 0, to pixels."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.begin, self.end = points[0].at_s, max(points[-1].at_s, points[0].at_s + 1.0)
        highest = max((value for point in points for value in point.p90_s.values() if math.isfinite(value)), default=1.0)
        self.step = _round_step(highest / STEPS)
        self.top = self.step * math.ceil(1.05 * highest / self.step)

    def x(self, at_s: float) -> float:
        return LEFT + (at_s - self.begin) / (self.end - self.begin) * (WIDTH - LEFT - RIGHT)

    def y(self, seconds: float) -> float:
        return HEIGHT - BOTTOM - min(1.0, max(0.0, seconds / self.top)) * (HEIGHT - TOP - BOTTOM)


def _round_step(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1.0, 2.0, 5.0, 10.0) if digit * power >= step * (1 - 1e-9))


def _grid(axis: _Axis) -> list[str]:
    bottom, right = axis.y(0.0), WIDTH - RIGHT
    parts = []
    for number in range(round(axis.top / axis.step) + 1):
        seconds = number * axis.step
        y = axis.y(seconds)
        label = f"{seconds:g} s" if axis.top >= 2 else f"{seconds * 1000:.0f} ms"
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    tick_s = 30.0 if axis.end - axis.begin > 90 else 10.0
    at_s = tick_s * math.ceil(axis.begin / tick_s)
    while at_s <= axis.end:
        x = axis.x(at_s)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom:.1f}" stroke="#f0f0f0"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{at_s:.0f} s</text>')
        at_s += tick_s
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 12}" text-anchor="middle">arrival, from the slowdown on</text>')
    parts.append(f'<text x="{LEFT - 8}" y="{TOP - 12}" text-anchor="end" fill="#666">TTFT p90</text>')
    return parts


def _marks(axis: _Axis) -> list[str]:
    parts = []
    for at_s, text in ((0.0, "workers slow"), (WITHIN_S, f"{WITHIN_S:.0f} s")):
        if axis.begin <= at_s <= axis.end:
            x = axis.x(at_s)
            parts.append(f'<path d="M{x:.1f} {TOP - 8}V{axis.y(0.0):.1f}" stroke="#555" stroke-dasharray="4 3"/>')
            parts.append(f'<text x="{x + 4:.1f}" y="{TOP - 2}" fill="#555">{text}</text>')
    return parts


def _band(axis: _Axis, points: Sequence[Point]) -> str:
    """Up to WITHIN_SHARE above the oracle, once WITHIN_S have passed."""
    settled = [point for point in points if point.at_s >= WITHIN_S and math.isfinite(point.p90_s[ORACLE])]
    above = [(axis.x(one.at_s), axis.y(one.p90_s[ORACLE] * (1 + WITHIN_SHARE))) for one in settled]
    below = [(axis.x(one.at_s), axis.y(one.p90_s[ORACLE])) for one in reversed(settled)]
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in above + below)
    return f'<polygon points="{outline}" fill="{COLOURS[ORACLE]}" fill-opacity="0.14"/>'


def _line(axis: _Axis, points: Sequence[Point], curve: str) -> str:
    known = [point for point in points if not math.isnan(point.p90_s[curve])]
    line = " ".join(f"{axis.x(one.at_s):.1f},{axis.y(one.p90_s[curve]):.1f}" for one in known)
    return f'<polyline points="{line}" fill="none" stroke="{COLOURS[curve]}" stroke-width="2"/>'


def _legend(place: int, curve: str) -> list[str]:
    x, y = WIDTH - RIGHT + 18, TOP + 12 + 62 * place
    name, *words = NAMES[curve]
    parts = [
        f'<path d="M{x} {y - 4}h20" stroke="{COLOURS[curve]}" stroke-width="3"/>',
        f'<text x="{x + 26}" y="{y}" font-weight="600">{escape(name)}</text>',
    ]
    parts += [
        f'<text x="{x + 26}" y="{y + 15 * number}" fill="#777">{escape(text)}</text>' for number, text in enumerate(words, 1)
    ]
    return parts

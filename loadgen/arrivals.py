"""When requests are due. Pure: seconds from the start of a run, from a generator given as an argument.

A renewal process of one arrival a second (`unit_poisson`, `unit_gamma`, `unit_constant`) is bent to any rate, constant or
ramping, by the inverse of the rate's integral: the process keeps its burstiness while its rate moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

PROCESSES = ("poisson", "gamma", "constant")


def recorded(at_s: Iterable[float], *, speed: float = 1.0) -> Iterator[float]:
    """The trace's own times from zero, `speed` times as fast. at_s: ascending seconds."""
    first: float | None = None
    for at in at_s:
        if first is None:
            first = at
        yield (at - first) / speed


def smooth(at_s: Sequence[float]) -> list[float]:
    """Spreads each group of equal times evenly up to the next time; the last group as its predecessor was spread.

    Mooncake traces say times in groups about 3 s apart: sent as they stand they are bursts that nobody recorded.
    """
    spread: list[float] = []
    begin = 0
    gap_s = 0.0
    while begin < len(at_s):
        end = begin
        while end < len(at_s) and at_s[end] == at_s[begin]:
            end += 1
        if end < len(at_s):
            gap_s = at_s[end] - at_s[begin]
        spread.extend(at_s[begin] + gap_s * place / (end - begin) for place in range(end - begin))
        begin = end
    return spread


def unit_constant() -> Iterator[float]:
    """0, 1, 2, ..."""
    return map(float, count())


def unit_poisson(rng: Random) -> Iterator[float]:
    """Independent arrivals, one a second on average."""
    at = 0.0
    while True:
        at += rng.expovariate(1.0)
        yield at


def unit_gamma(rng: Random, cv: float) -> Iterator[float]:
    """Gamma gaps of mean 1 s. cv: their coefficient of variation; 1 is Poisson, above is bursty, below is regular."""
    shape = 1.0 / (cv * cv)
    at = 0.0
    while True:
        at += rng.gammavariate(shape, 1.0 / shape)
        yield at


@dataclass(frozen=True, slots=True)
class Segment:
    """Requests a second, from `begin` to `end` in a straight line over `duration_s`."""

    begin: float
    end: float
    duration_s: float

    @property
    def arrivals(self) -> float:
        return (self.begin + self.end) / 2 * self.duration_s

    def time_of(self, arrivals: float) -> float:
        """Seconds into the segment at which so many arrivals are expected; the stable root of the quadratic."""
        slope = (self.end - self.begin) / self.duration_s
        return 2 * arrivals / (self.begin + math.sqrt(max(0.0, self.begin**2 + 2 * slope * arrivals)))


@dataclass(frozen=True, slots=True)
class RateProfile:
    """Segments one after the other; the last one's end rate goes on for ever."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments or self.segments[-1].end <= 0:
            raise ValueError("a rate profile must end with a rate above 0")
        if any(s.begin < 0 or s.end < 0 or s.begin + s.end <= 0 or s.duration_s <= 0 for s in self.segments):
            raise ValueError("rates and durations must be above 0")

    def time_of(self, arrivals: float) -> float:
        """Seconds from the start at which so many arrivals are expected."""
        at_s = 0.0
        for segment in self.segments:
            if arrivals <= segment.arrivals:
                return at_s + segment.time_of(arrivals) if arrivals > 0 else at_s
            arrivals -= segment.arrivals
            at_s += segment.duration_s
        return at_s + arrivals / self.segments[-1].end


def steady(rate: float) -> RateProfile:
    """The same rate for ever. ValueError: not above 0."""
    return RateProfile((Segment(rate, rate, 1.0),))


def parse_rate(text: str) -> RateProfile:
    """`5`: steady. `1-10:60`: from 1 to 10 a second within 60 s. `2:30,8:30,2:30`: steps. The last rate goes on.

    ValueError: one sentence on what does not fit.
    """
    try:
        if ":" not in text:
            return steady(float(text))
        segments = []
        for part in text.split(","):
            rates, _, duration = part.partition(":")
            begin, _, end = rates.partition("-")
            segments.append(Segment(float(begin), float(end or begin), float(duration)))
        return RateProfile(tuple(segments))
    except ValueError as error:
        if "must" in str(error):
            raise
        raise ValueError(f"{text!r} is no rate; write 5, or 1-10:60 (from, to, seconds), or 2:30,8:30") from None


def at_rate(unit: Iterable[float], profile: RateProfile) -> Iterator[float]:
    """Bends a process of one arrival a second to the profile's rate."""
    return map(profile.time_of, unit)


def process(name: str, profile: RateProfile, *, rng: Random, cv: float = 2.0) -> Iterator[float]:
    """name: one of PROCESSES; cv: gamma only."""
    if name == "constant":
        return at_rate(unit_constant(), profile)
    if name == "gamma":
        return at_rate(unit_gamma(rng, cv), profile)
    return at_rate(unit_poisson(rng), profile)

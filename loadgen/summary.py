"""A run in figures. Pure: records in, figures out.

Failures and sheds are no latencies but they are misses: goodput counts them, quantiles do not. The cached share is the
engine's own word (`usage.prompt_tokens_details.cached_tokens`), never the router's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from loadgen import answer as ends
from loadgen.recorder import Record

LATENESS_P99_S_MAX = 0.010
"""A generator later than this at p99 (and later than a tenth of the median TTFT) measures itself, not the fleet."""
LATENESS_TTFT_SHARE_MAX = 0.1

_BUCKETS_FROM_S = 1e-6
_BUCKET_WIDTH = np.log(1.01)
_BUCKETS = 2048  # 1 us to 12 minutes


class GapHistogram:
    """Gaps between tokens of any number of requests in fixed memory; quantiles are right to 1 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)

    def add(self, gaps: Sequence[float]) -> None:
        """gaps: seconds."""
        if gaps:
            values = np.maximum(np.asarray(gaps), _BUCKETS_FROM_S)
            places = (np.log(values / _BUCKETS_FROM_S) / _BUCKET_WIDTH).astype(np.int64)
            self._counts += np.bincount(np.minimum(places, _BUCKETS - 1), minlength=_BUCKETS)

    def merge(self, other: GapHistogram) -> None:
        self._counts += other._counts

    def quantile(self, q: float) -> float | None:
        """None: nothing was added."""
        total = int(self._counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._counts), q * (total - 1), side="right"))
        return float(_BUCKETS_FROM_S * np.exp((min(place, _BUCKETS - 1) + 0.5) * _BUCKET_WIDTH))


class Quantiles(msgspec.Struct, frozen=True):
    """Seconds; None where there was nothing to take them of."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


def quantiles(values: Sequence[float]) -> Quantiles:
    """Linear between the ranks, as numpy has it."""
    if not values:
        return Quantiles()
    p50, p90, p99 = np.percentile(np.asarray(values), (50, 90, 99))
    return Quantiles(float(p50), float(p90), float(p99), float(max(values)))


class Slo(msgspec.Struct, frozen=True):
    """What a request must keep to count; None: no bound. ITL is a request's mean time per token after the first."""

    ttft_s: float | None = None
    itl_s: float | None = None

    @property
    def given(self) -> bool:
        return self.ttft_s is not None or self.itl_s is not None

    def met(self, entry: Record) -> bool:
        if entry.end != ends.OK or entry.ttft_s < 0:
            return False
        if self.ttft_s is not None and entry.ttft_s > self.ttft_s:
            return False
        return self.itl_s is None or entry.tpot_s <= self.itl_s


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run, or the rounds of one policy together, came to. Shares are 0..1, None where nothing could be counted."""

    policy: str
    requests: int
    ok: int
    shed: int
    failed: int
    interrupted: int
    failures: dict[str, int]  # by how they ended, sheds not included
    errors: dict[str, int]  # the commonest messages
    duration_s: float  # from the first request due to the last end
    offered_per_s: float
    completed_per_s: float
    output_tokens_per_s: float
    ttft_s: Quantiles
    itl_s: Quantiles
    tpot_s: Quantiles
    e2e_s: Quantiles
    slo: Slo
    goodput_share: float | None
    goodput_per_s: float | None
    prompt_tokens: int
    cached_tokens: int
    cached_share: float | None
    cached_reported: int  # requests whose engine said what was cached
    match_compared: int  # requests with both a prediction and the engine's figure
    match_equal_share: float | None
    match_over_share: float | None  # the router believed in more than there was
    match_under_share: float | None
    short_outputs: int  # complete, but with fewer tokens than were asked of an engine told to ignore its stop token
    retried: int  # more than one attempt by the router
    fallbacks: int
    reconnects: int
    workers: dict[str, int]
    lateness_s: Quantiles
    warning: str


class Summary:
    """Records of one policy, as they come."""

    def __init__(
        self, *, policy: str = "", slo: Slo | None = None, match_block_tokens: int = 16, exact_outputs: bool = True
    ) -> None:
        """match_block_tokens: predicted and actual match are equal when they are so to this block.
        exact_outputs: the engines were told to ignore their stop token."""
        self._policy = policy
        self._slo = slo or Slo()
        self._block = match_block_tokens
        self._exact_outputs = exact_outputs
        self._gaps = GapHistogram()
        self._records: list[Record] = []

    def add(self, entry: Record, gaps: Sequence[float] = ()) -> None:
        """gaps: seconds between the request's events; they count only where it succeeded."""
        self._records.append(entry)
        if entry.end == ends.OK:
            self._gaps.add(gaps)

    def __len__(self) -> int:
        return len(self._records)

    def figures(self) -> Figures:
        every = self._records
        good = [entry for entry in every if entry.end == ends.OK]
        asked = [entry for entry in every if entry.end != ends.INTERRUPTED]
        bad = [entry for entry in asked if entry.end not in (ends.OK, ends.SHED)]
        duration_s = _duration_s(every)
        hits = sum(map(self._slo.met, asked))
        reported = [entry for entry in good if entry.cached_tokens >= 0]
        prompt = sum(entry.prompt_tokens for entry in reported)
        cached = sum(entry.cached_tokens for entry in reported)
        over, under, compared = self._matches(reported)
        ttft = quantiles([entry.ttft_s for entry in good if entry.ttft_s >= 0])
        lateness = quantiles([entry.lateness_s for entry in every])
        return Figures(
            policy=self._policy,
            requests=len(every),
            ok=len(good),
            shed=sum(entry.end == ends.SHED for entry in every),
            failed=len(bad),
            interrupted=len(every) - len(asked),
            failures=_counts(entry.end for entry in bad),
            errors=_counts((f"{entry.end}: {entry.error}" for entry in asked if entry.error), most=5),
            duration_s=duration_s,
            offered_per_s=_rate(len(every), _offered_s(every)),
            completed_per_s=_rate(len(good), duration_s),
            output_tokens_per_s=_rate(sum(max(0, entry.output_tokens) for entry in good), duration_s),
            ttft_s=ttft,
            itl_s=Quantiles(*(self._gaps.quantile(q) for q in (0.5, 0.9, 0.99, 1.0))),
            tpot_s=quantiles([entry.tpot_s for entry in good if entry.tpot_s >= 0]),
            e2e_s=quantiles([entry.e2e_s for entry in good]),
            slo=self._slo,
            goodput_share=_share(hits, len(asked)) if self._slo.given else None,
            goodput_per_s=_rate(hits, duration_s) if self._slo.given else None,
            prompt_tokens=prompt,
            cached_tokens=cached,
            cached_share=_share(cached, prompt),
            cached_reported=len(reported),
            match_compared=compared,
            match_equal_share=_share(compared - over - under, compared),
            match_over_share=_share(over, compared),
            match_under_share=_share(under, compared),
            short_outputs=sum(self._exact_outputs and 0 <= entry.output_tokens < entry.output_tokens_asked for entry in good),
            retried=sum(entry.attempts > 1 for entry in every),
            fallbacks=sum(entry.fallback for entry in every),
            reconnects=sum(entry.reconnects for entry in every),
            workers=_counts(entry.worker for entry in every if entry.worker),
            lateness_s=lateness,
            warning=lateness_warning(lateness, ttft),
        )

    def _matches(self, reported: list[Record]) -> tuple[int, int, int]:
        """How many predictions were above the engine's own figure, how many below, of how many."""
        off = [
            entry.matched_tokens // self._block - entry.cached_tokens // self._block
            for entry in reported
            if entry.matched_tokens >= 0
        ]
        return sum(value > 0 for value in off), sum(value < 0 for value in off), len(off)


def lateness_warning(lateness: Quantiles, ttft: Quantiles) -> str:
    """Empty where the generator kept its schedule well enough for the figures to be the fleet's."""
    bound_s = max(LATENESS_P99_S_MAX, LATENESS_TTFT_SHARE_MAX * (ttft.p50 or 0.0))
    if lateness.p99 is None or lateness.p99 <= bound_s:
        return ""
    return (
        f"the load generator itself was late (p99 {lateness.p99 * 1000:.0f} ms, bound {bound_s * 1000:.0f} ms): "
        "these figures are not fit to judge the fleet by; lower the rate or use a quieter machine"
    )


def _rounds(records: Sequence[Record]) -> list[list[Record]]:
    """Each round has a clock of its own."""
    rounds: dict[int, list[Record]] = {}
    for entry in records:
        rounds.setdefault(entry.round, []).append(entry)
    return list(rounds.values())


def _duration_s(records: Sequence[Record]) -> float:
    """From the first request due to the last end, rounds added up."""
    return sum(
        max(0.0, max(entry.sent_s + entry.e2e_s for entry in of_round) - min(entry.scheduled_s for entry in of_round))
        for of_round in _rounds(records)
    )


def _offered_s(records: Sequence[Record]) -> float:
    """From the first request due to the last one due, rounds added up."""
    return sum(
        max(entry.scheduled_s for entry in of_round) - min(entry.scheduled_s for entry in of_round)
        for of_round in _rounds(records)
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _counts(values: Iterable[str], *, most: int | None = None) -> dict[str, int]:
    counted = Counter(values)
    return dict(sorted(counted.items()) if most is None else counted.most_common(most))

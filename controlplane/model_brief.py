"""The short way of `predictive`, where the model that serves answers row by row (prediction.few.Single).

The median is asked of every endpoint; the p90 of the best alone, and only where the model's leaves could make it so wide
that it would not decide. The rest is worked out when somebody wants a record or an explanation. Where the next question
asks for as much as the one before, which is usual among requests made by one program, only the endpoint that was chosen
in between has another row.

Where no endpoint has shown its speed yet, as in a fleet whose callers never stream, the p90 is so far above any median that no
prediction decides (see prediction.calibration). Then nothing is asked of the model before somebody wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, inf, log1p, nan
from operator import mul

from contract.features import PAIRS_A_TOKEN, SPEED_UNKNOWN
from controlplane.choosers import Chooser
from controlplane.corrections import Correction
from controlplane.endpoint import Candidate
from controlplane.few_rows import Spot, still, write
from controlplane.picker import Turn
from controlplane.predictor import Forecast, Predictor, predicted
from controlplane.ranking import NO_MODEL, TIED, UNSTEADY, WIDE, Ranking, Tally, among
from controlplane.row import Row
from prediction.calibration import LOG_TTFT_BOUNDS
from prediction.derive import FLOOR_S
from prediction.few import Single, cut

_TIED = log1p(TIED)
_LOW, _HIGH = LOG_TTFT_BOUNDS
_REASONS = ("", WIDE, UNSTEADY)
_WIDE, _UNSTEADY = 1.0, 2.0
_UNSEEN: Sequence[float] = (nan, nan, _WIDE)
"""What was judged by where the model was not asked."""
_SURE = 1e-6
"""Log seconds, above all that rounding does."""
_NONE = nan
"""In place of a median that is not known."""


class ModelBrief:
    """Of `predictive`. What a decision was judged by: log seconds of the chosen one, median and p90 (no number: not asked for),
    and a number for why that did not decide; nothing where the model answered with no time."""

    __slots__ = (
        *("_begins_s", "_blind_s", "_choose", "_corrections", "_held", "_log_factors", "_log_ratio_max", "_max_tokens"),
        *(
            "_medians",
            "_narrow",
            "_p90s",
            "_predictor",
            "_rows",
            "_single",
            "_spread_max",
            "_tally",
            "_there",
            "_tokens",
            "model_id",
        ),
    )

    def __init__(
        self,
        rows: Sequence[Row],
        choose: Chooser,
        single: Single,
        predictor: Predictor,
        model_id: str,
        corrections: list[Correction],
        now: float,
        bounds: tuple[float, float],
        tally: Tally,
    ) -> None:
        """single: of the predictor; bounds: of a p90's log seconds above its median and of a worker's spread, beyond which a
        prediction does not decide."""
        self._rows, self._choose, self._tally = rows, choose, tally
        self._single, self._predictor, self.model_id = single, predictor, model_id
        self._corrections = corrections
        self._log_ratio_max, self._spread_max = bounds
        self._log_factors = [one.log_factor for one in corrections]
        self._there: list[tuple[Row, Spot, float]] = []
        for row in rows:
            at, standing = row.at, row.standing
            assert standing is not None
            spot = Spot(single.rows, at, standing, now, row.load.token_at)
            self._there.append((row, spot, self._log_factors[at]))
        self._begins_s, self._blind_s = self._seen_from(single)
        widest = single.widest
        if single.beyond > widest and any(spot.unknown for _, spot, _ in self._there):
            widest = single.beyond
        self._narrow = widest < self._log_ratio_max - _SURE
        """Whatever is asked, no p90 is too far above its median to decide."""
        self._tokens = self._max_tokens = -1
        count = len(rows)
        self._medians = [_NONE] * count  # of the question before, as the model has them
        self._p90s = [_NONE] * count
        self._held = [0] * count  # tokens matched by then

    def _seen_from(self, single: Single) -> tuple[float, float]:
        """How long a prompt waits at most before it is begun, seconds; and up to which time until it would be done, by the
        router's own estimate, no prediction can decide."""
        waits_s = [spot.begins_s for _, spot, _ in self._there if spot.unknown]
        if len(waits_s) < len(self._there) or min(waits_s) < 0.0 or single.beyond <= self._log_ratio_max + _SURE:
            return 0.0, 0.0
        highest = _HIGH - self._log_ratio_max - single.highest - _SURE
        return max(waits_s), exp(min(highest, _HIGH)) - FLOOR_S

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        if self._begins_s + (tokens + tokens * (0.5 * tokens) / PAIRS_A_TOKEN) / SPEED_UNKNOWN < self._blind_s:
            return self._unseen(matched, tokens, model, turn)
        medians, held = self._medians, self._held
        if tokens != self._tokens or max_tokens != self._max_tokens:
            self._tokens, self._max_tokens = tokens, max_tokens
            medians[:] = self._p90s[:] = [_NONE] * len(medians)
        asks = self._single.asks
        logs: list[float] = []
        least = second = inf
        best = 0
        for row, spot, log_factor in self._there:
            at, there = row.at, row.matched_tokens
            value = medians[at]
            if value != value or held[at] != there:
                start = spot.asked(tokens, there, max_tokens)
                value = medians[at] = start + asks[at]()
                held[at] = there
                self._p90s[at] = _NONE
            if not _LOW < value < _HIGH:
                value = cut(value)
            value += log_factor
            logs.append(value)
            if value < second:
                if value < least:
                    least, second, best = value, least, at
                else:
                    second = value
            elif value != value:
                return self._left(matched, tokens, model, turn)
        p90 = nan if self._narrow else self._p90(best)
        why = 0.0
        if p90 - cut(medians[best]) > self._log_ratio_max:
            why = _WIDE
        elif self._corrections[best].spread > self._spread_max:
            why = _UNSTEADY
        if why:
            row = self._choose(self._rows, matched, tokens, model, turn)
            self._tally.leave(_REASONS[int(why)])
        else:
            row = self._rows[best]
            if second <= least + _TIED:
                row = among(self._rows, logs, least + _TIED, self._choose, matched, tokens, model, turn)
            self._tally.ranked += 1
        at = row.at
        if at != best and not self._narrow:
            p90 = self._p90(at)
        self._placed(row, tokens)
        return row, (logs[at], p90 + self._there[at][2], why)

    def _p90(self, at: int) -> float:
        """Log seconds, not corrected."""
        p90 = self._p90s[at]
        if p90 != p90:
            p90 = self._p90s[at] = self._single.p90(at, self._medians[at], unknown=self._there[at][1].unknown)
        return p90

    def _unseen(self, matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> tuple[Row, Sequence[float]]:
        """To the scorers: whichever has the least median, and whatever that is, its p90 is too far above it."""
        row = self._choose(self._rows, matched, tokens, model, turn)
        self._tally.leave(WIDE)
        self._placed(row, tokens)
        begins_s = self._there[row.at][1].begins_s
        if begins_s > self._begins_s:
            self._begins_s = begins_s
        return row, _UNSEEN

    def _left(self, matched: Sequence[Row], tokens: int, model: str, turn: Turn) -> tuple[Row, Sequence[float]]:
        """To the scorers: what the model says is no time."""
        row = self._choose(self._rows, matched, tokens, model, turn)
        self._tally.leave(NO_MODEL)
        self._placed(row, tokens)
        return row, ()

    def _placed(self, row: Row, tokens: int) -> None:
        at = row.at
        self._there[at][1].placed(tokens, tokens - row.matched_tokens)
        self._medians[at] = self._p90s[at] = _NONE

    def close(self) -> None:
        """Its moment is over. What it decided is remembered, and it with that: what only deciding needs is let go."""
        self._there = []
        self._medians, self._p90s, self._held = [], [], []

    def reason(self, judged: Sequence[float]) -> str:
        return _REASONS[int(judged[2])] if judged else NO_MODEL

    def predicted(self, judged: Sequence[float], at: int, candidate: Callable[[], Candidate]) -> tuple[float, float]:
        if not judged:
            return 0.0, 0.0
        p50, p90, _ = judged
        if p90 != p90:  # the memory is nobody's between two messages
            row, single, log_factor = candidate(), self._single, self._log_factors[at]
            there = still(row.standing)
            median = single.median(0, write(single, 0, row, there))
            p50, p90 = cut(median) + log_factor, single.p90(0, median, unknown=there.unknown) + log_factor
        return exp(p50), exp(p90)

    def ranking(self, judged: Sequence[float], candidates: Sequence[Candidate]) -> Ranking:
        if not judged:
            return Ranking(reason=NO_MODEL)
        factors = list(map(exp, self._log_factors))
        p50, p90 = (list(map(mul, seconds, factors)) for seconds in predicted(self._predictor, candidates))
        reason = self.reason(judged)
        forecast = Forecast(self.model_id, p50, p90, self._corrections, factors)
        return Ranking(() if reason else p50, forecast, reason)

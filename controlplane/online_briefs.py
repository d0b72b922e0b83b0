"""The short ways of `linear_online` and `hierarchical`: their linear models over the rows of a few endpoints, in plain Python.

What an endpoint brings to the sum of logarithms is made once a moment, what a prompt brings once a question. The formulas are
those of controlplane.online and its columns; a test holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log1p

from contract.features import PAIRS_A_TOKEN
from controlplane.choosers import Chooser
from controlplane.corrections import Correction
from controlplane.online import LOG_BOUNDS, OnlineLinear
from controlplane.picker import Turn
from controlplane.predictor import Forecast
from controlplane.ranking import OUTSIDE, TIED, Ranking, Tally, among
from controlplane.row import Row

_LOW, _HIGH = LOG_BOUNDS
_TIED = log1p(TIED)


class _Work:
    """online.work_columns times their weights, of the endpoints of one moment. there: of each the prefill work that is queued,
    tokens, what else it brings, log seconds, and what its predictions are to be cut to less its own correction."""

    __slots__ = ("own_weight", "there", "weight")

    def __init__(self, rows: Sequence[Row], model: OnlineLinear, log_factors: Sequence[float]) -> None:
        self.weight, self.own_weight, decoding_weight, start = model.weights.tolist()
        self.there = []
        for row, log_factor in zip(rows, log_factors, strict=True):
            standing = row.standing
            assert standing is not None
            decoding = standing.active - standing.no_first_byte
            rest = decoding_weight * log1p(decoding) + start if decoding > 0 else start
            self.there.append((standing.prefill_tokens + standing.prefill_pairs / PAIRS_A_TOKEN, rest, log_factor))

    def logs(self, matched: Sequence[Row], tokens: int) -> tuple[list[float], bool]:
        """Log seconds of a prompt at each; whether the least of them is the only one as good."""
        weight, there = self.weight, self.there
        own = tokens + tokens * (0.5 * tokens) / PAIRS_A_TOKEN
        ours = self.own_weight * log1p(own)
        least = second = inf
        found: list[float] = []
        for queued, rest, log_factor in there:
            value = weight * log1p(own + queued) + ours + rest
            if not _LOW < value < _HIGH:
                value = _LOW if value < _LOW else _HIGH
            value += log_factor
            found.append(value)
            if value < second:
                if value < least:
                    least, second = value, least
                else:
                    second = value
        if matched:
            for row in matched:
                at = row.at
                own = _prefill(tokens - row.matched_tokens, tokens)
                queued, rest, log_factor = there[at]
                value = weight * log1p(own + queued) + self.own_weight * log1p(own) + rest
                found[at] = min(max(value, _LOW), _HIGH) + log_factor
            least = min(found)
            return found, len([None for value in found if value <= least + _TIED]) == 1
        return found, second > least + _TIED

    def placed(self, row: Row, tokens: int) -> None:
        """A prompt is queued there."""
        at = row.at
        queued, rest, log_factor = self.there[at]
        self.there[at] = queued + _prefill(tokens - row.matched_tokens, tokens), rest, log_factor


def _prefill(uncached_tokens: int, input_tokens: int) -> float:
    """Work of a prompt, in tokens."""
    return uncached_tokens + uncached_tokens * (input_tokens - 0.5 * uncached_tokens) / PAIRS_A_TOKEN


class WorkBrief:
    """Of `linear_online`."""

    __slots__ = ("_choose", "_corrections", "_factors", "_model_id", "_ratio", "_rows", "_tally", "_work")

    def __init__(
        self,
        rows: Sequence[Row],
        choose: Chooser,
        model: OnlineLinear,
        model_id: str,
        corrections: list[Correction],
        tally: Tally,
    ) -> None:
        self._rows, self._choose, self._tally = rows, choose, tally
        self._work = _Work(rows, model, [one.log_factor for one in corrections])
        self._ratio, self._model_id = model.p90_ratio, model_id
        self._corrections = corrections
        self._factors = [one.factor for one in corrections]

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        logs, alone = self._work.logs(matched, tokens)
        rows, least = self._rows, min(logs)
        row = rows[logs.index(least)]
        if not alone:
            row = among(rows, logs, least + _TIED, self._choose, matched, tokens, model, turn)
        self._work.placed(row, tokens)
        self._tally.ranked += 1
        return row, logs

    def ranking(self, judged: Sequence[float]) -> Ranking:
        p50_s = list(map(exp, judged))
        p90_s = [seconds * self._ratio for seconds in p50_s]
        return Ranking(p50_s, Forecast(self._model_id, p50_s, p90_s, self._corrections, self._factors))


class LayersBrief:
    """Of `hierarchical`, where it has learned enough. By the zone's own model a prompt's length is the same factor everywhere,
    so who is best there is known before anything is asked."""

    __slots__ = ("_all", "_best", "_choose", "_least", "_logs", "_most", "_ratio", "_rows", "_tally", "_weight", "_zone")

    def __init__(
        self,
        rows: Sequence[Row],
        choose: Chooser,
        every: OnlineLinear,
        middle: OnlineLinear,
        zone: tuple[float, float],
        tally: Tally,
    ) -> None:
        """every, middle: the models of all traffic and of the zone alone; zone: seconds, from and below."""
        self._rows, self._choose, self._tally = rows, choose, tally
        self._all, self._zone, self._ratio = _Work(rows, every, [0.0] * len(rows)), zone, middle.p90_ratio
        running_weight, self._weight, start = middle.weights.tolist()
        logs: list[float] = []
        for row in rows:
            assert row.standing is not None
            logs.append(running_weight * log1p(row.standing.running) + start)
        self._logs = logs
        self._least, self._most = min(logs), max(logs)
        self._best = [row for row, value in zip(rows, logs, strict=True) if value <= self._least + _TIED]

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        low, high = self._zone
        judged: Sequence[float] = ()
        rows = self._rows
        if low <= exp(min(self._all.logs(matched, tokens)[0])) < high:
            ours = self._weight * log1p(tokens)
            judged = (ours,)
            if self._least + ours > _LOW and self._most + ours < _HIGH:
                rows = self._best
            else:
                logs = self._cut(ours)
                rows = [row for row, value in zip(rows, logs, strict=True) if value <= min(logs) + _TIED]
            self._tally.ranked += 1
        else:
            self._tally.leave(OUTSIDE)
        row = rows[0]
        if len(rows) > 1:
            row = self._choose(rows, [one for one in rows if one.matched_tokens] if matched else matched, tokens, model, turn)
        self._all.placed(row, tokens)
        return row, judged

    def _cut(self, ours: float) -> list[float]:
        """Log seconds by the zone's own model."""
        return [min(max(value + ours, _LOW), _HIGH) for value in self._logs]

    def ranking(self, judged: Sequence[float]) -> Ranking:
        if not judged:
            return Ranking(reason=OUTSIDE)
        p50_s = list(map(exp, self._cut(judged[0])))
        p90_s = [seconds * self._ratio for seconds in p50_s]
        return Ranking(p50_s, Forecast("hierarchical", p50_s, p90_s, [], [1.0] * len(p50_s)))

"""The short ways of `linear_online` and `hierarchical`: their linear models over the rows of a few endpoints, in plain Python.

What an endpoint brings to the sum of logarithms is made once a moment, what a prompt brings once a question. The formulas are
those of controlplane.online and its columns; a test holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, inf, log1p

from contract.features import PAIRS_A_TOKEN
from controlplane.choosers import Chooser
from controlplane.corrections import Correction
from controlplane.endpoint import Candidate
from controlplane.online import LOG_BOUNDS, OnlineLinear
from controlplane.picker import Turn
from controlplane.predictor import Forecast
from controlplane.ranking import OUTSIDE, TIED, Ranking, Tally, among
from controlplane.row import Row

_LOW, _HIGH = LOG_BOUNDS
_TIED = log1p(TIED)


class _Work:
    """online.work_columns times their weights, of the endpoints of one moment. there: of each the prefill work that is queued,
    tokens, what else it brings, log seconds, and its own correction, which its predictions are not cut by."""

    __slots__ = ("own_weight", "there", "weight")

    def __init__(self, rows: Sequence[Row], model: OnlineLinear, corrections: Sequence[Correction]) -> None:
        """corrections: of each; none: nobody has one."""
        self.weight, self.own_weight, decoding_weight, start = model.plain_weights
        self.there = []
        for row in rows:
            standing = row.standing
            assert standing is not None
            decoding = standing.active - standing.no_first_byte
            rest = decoding_weight * log1p(decoding) + start if decoding > 0 else start
            log_factor = corrections[row.at].log_factor if corrections else 0.0
            self.there.append((standing.prefill_tokens + standing.prefill_pairs / PAIRS_A_TOKEN, rest, log_factor))

    def logs(self, matched: Sequence[Row], tokens: int) -> tuple[list[float], float, float]:
        """Log seconds of a prompt at each, and the two least of them."""
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
            least, second, *_ = [*sorted(found), inf]
        return found, least, second

    def placed(self, row: Row, tokens: int) -> None:
        """A prompt is queued there."""
        at = row.at
        queued, rest, log_factor = self.there[at]
        self.there[at] = queued + _prefill(tokens - row.matched_tokens, tokens), rest, log_factor


def _prefill(uncached_tokens: int, input_tokens: int) -> float:
    """Work of a prompt, in tokens."""
    return uncached_tokens + uncached_tokens * (input_tokens - 0.5 * uncached_tokens) / PAIRS_A_TOKEN


class WorkBrief:
    """Of `linear_online`. What a decision was judged by: log seconds of all rows."""

    __slots__ = ("_choose", "_corrections", "_ratio", "_rows", "_tally", "_work", "model_id")

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
        self._work = _Work(rows, model, corrections)
        self._ratio, self.model_id = model.p90_ratio, model_id
        self._corrections = corrections

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        logs, least, second = self._work.logs(matched, tokens)
        rows, bound = self._rows, least + _TIED
        row = rows[logs.index(least)]
        if second <= bound:
            row = among(rows, logs, bound, self._choose, matched, tokens, model, turn)
        self._work.placed(row, tokens)
        self._tally.ranked += 1
        return row, logs

    def reason(self, judged: Sequence[float]) -> str:
        return ""

    def predicted(self, judged: Sequence[float], at: int, candidate: Callable[[], Candidate]) -> tuple[float, float]:
        p50_s = exp(judged[at])
        return p50_s, p50_s * self._ratio

    def ranking(self, judged: Sequence[float], candidates: Sequence[Candidate]) -> Ranking:
        p50_s = list(map(exp, judged))
        p90_s = [seconds * self._ratio for seconds in p50_s]
        factors = [exp(log_factor) for _, _, log_factor in self._work.there]
        return Ranking(p50_s, Forecast(self.model_id, p50_s, p90_s, self._corrections, factors))


class LayersBrief:
    """Of `hierarchical`, where it has learned enough. By the zone's own model a prompt's length is the same factor everywhere,
    so who is best there is known before anything is asked. What a decision was judged by: the logarithm of that factor."""

    model_id = "hierarchical"
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
        self._all, self._zone, self._ratio = _Work(rows, every, ()), zone, middle.p90_ratio
        running_weight, self._weight, start = middle.plain_weights
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
        if low <= exp(self._all.logs(matched, tokens)[1]) < high:
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

    def reason(self, judged: Sequence[float]) -> str:
        return "" if judged else OUTSIDE

    def predicted(self, judged: Sequence[float], at: int, candidate: Callable[[], Candidate]) -> tuple[float, float]:
        if not judged:
            return 0.0, 0.0
        p50_s = exp(self._cut(judged[0])[at])
        return p50_s, p50_s * self._ratio

    def ranking(self, judged: Sequence[float], candidates: Sequence[Candidate]) -> Ranking:
        if not judged:
            return Ranking(reason=OUTSIDE)
        p50_s = list(map(exp, self._cut(judged[0])))
        p90_s = [seconds * self._ratio for seconds in p50_s]
        return Ranking(p50_s, Forecast(self.model_id, p50_s, p90_s, [], [1.0] * len(p50_s)))

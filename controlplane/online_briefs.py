"""The short ways of `linear_online` and `hierarchical`: their linear models over the rows of a few endpoints, in plain Python.

What an endpoint brings to the sum of logarithms is made once a moment, what a prompt brings once a question. The formulas are
those of controlplane.online and its columns; a test holds both ways against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log1p

from contract.features import PAIRS_A_TOKEN
from controlplane.choosers import Chooser
from controlplane.corrections import Correction
from controlplane.online import LOG_BOUNDS, OnlineLinear
from controlplane.picker import Turn
from controlplane.predictor import Forecast
from controlplane.ranking import OUTSIDE, Ranking, Tally, chosen
from controlplane.row import Row

_LOW, _HIGH = LOG_BOUNDS


class _Work:
    """online.work_columns times their weights, of the endpoints of one moment: the prefill work that is queued at each, tokens,
    and what else it brings, log seconds."""

    __slots__ = ("ahead", "own_weight", "rest", "weight")

    def __init__(self, rows: Sequence[Row], model: OnlineLinear) -> None:
        self.weight, self.own_weight, decoding_weight, start = model.weights.tolist()
        self.ahead, self.rest = [], []
        for row in rows:
            there = row.standing
            assert there is not None
            decoding = there.active - there.no_first_byte
            self.ahead.append(there.prefill_tokens + there.prefill_pairs / PAIRS_A_TOKEN)
            self.rest.append(decoding_weight * log1p(decoding) + start if decoding > 0 else start)

    def logs(self, matched: Sequence[Row], tokens: int) -> list[float]:
        """Log seconds of a prompt at each, not cut."""
        weight, ahead, rest = self.weight, self.ahead, self.rest
        own = prefill(tokens, tokens)
        ours = self.own_weight * log1p(own)
        found = [weight * log1p(own + queued) + ours + more for queued, more in zip(ahead, rest, strict=True)]
        for row in matched:
            at = row.at
            own = prefill(tokens - row.matched_tokens, tokens)
            found[at] = weight * log1p(own + ahead[at]) + self.own_weight * log1p(own) + rest[at]
        return found

    def placed(self, row: Row, tokens: int) -> None:
        """A prompt is queued there."""
        self.ahead[row.at] += prefill(tokens - row.matched_tokens, tokens)


def prefill(uncached_tokens: int, input_tokens: int) -> float:
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
        self._work = _Work(rows, model)
        self._ratio, self._model_id = model.p90_ratio, model_id
        self._corrections = corrections
        self._factors = [one.factor for one in corrections]

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        costs = []
        for value, factor in zip(self._work.logs(matched, tokens), self._factors, strict=True):
            costs.append(exp(_LOW if value < _LOW else _HIGH if value > _HIGH else value) * factor)
        row = chosen(costs, self._rows, self._choose, matched, tokens, model, turn)
        self._work.placed(row, tokens)
        self._tally.ranked += 1
        return row, costs

    def ranking(self, judged: Sequence[float]) -> Ranking:
        p50_s = list(judged)
        p90_s = [seconds * self._ratio for seconds in p50_s]
        return Ranking(p50_s, Forecast(self._model_id, p50_s, p90_s, self._corrections, self._factors))


class LayersBrief:
    """Of `hierarchical`, where it has learned enough."""

    __slots__ = ("_all", "_choose", "_middle", "_ratio", "_rows", "_running", "_tally", "_weight", "_zone")

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
        self._all, self._zone, self._ratio = _Work(rows, every), zone, middle.p90_ratio
        running_weight, self._weight, start = middle.weights.tolist()
        self._running = []
        for row in rows:
            assert row.standing is not None
            self._running.append(running_weight * log1p(row.standing.running) + start)

    def choose(
        self, matched: Sequence[Row], tokens: int, max_tokens: int, model: str, turn: Turn
    ) -> tuple[Row, Sequence[float]]:
        low, high = self._zone
        least = min(self._all.logs(matched, tokens))
        costs: list[float] = []
        if low <= exp(_LOW if least < _LOW else _HIGH if least > _HIGH else least) < high:
            ours = self._weight * log1p(tokens)
            costs = [exp(min(max(value + ours, _LOW), _HIGH)) for value in self._running]
            row = chosen(costs, self._rows, self._choose, matched, tokens, model, turn)
            self._tally.ranked += 1
        else:
            row = self._choose(self._rows, matched, tokens, model, turn)
            self._tally.leave(OUTSIDE)
        self._all.placed(row, tokens)
        return row, costs

    def ranking(self, judged: Sequence[float]) -> Ranking:
        if not judged:
            return Ranking(reason=OUTSIDE)
        p50_s = list(judged)
        p90_s = [seconds * self._ratio for seconds in p50_s]
        return Ranking(p50_s, Forecast("hierarchical", p50_s, p90_s, [], [1.0] * len(p50_s)))

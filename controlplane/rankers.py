"""Rankers: from the candidates of a decision to what each would cost, by predicted TTFT. What a ranker cannot or should not
judge it leaves to its profile's scorers, and says why.

LeastPredicted   the served model's median: `predictive`
LeastOnline      a linear model that learns from every request: `linear_online`
Layered          the three layers of `hierarchical`
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Protocol

from controlplane.choosers import Chooser
from controlplane.endpoint import Candidate, Endpoint
from controlplane.feature_rows import Rows
from controlplane.model_brief import ModelBrief
from controlplane.online import RUNNING_PRIOR, WORK_PRIOR, OnlineLinear, running_columns, work_columns
from controlplane.online_briefs import LayersBrief, WorkBrief
from controlplane.predictor import Forecast, Forecaster, Sample
from controlplane.ranking import NO_MODEL, OUTSIDE, UNLEARNED, UNSTEADY, WIDE, Brief, Ranking, Tally
from controlplane.row import Row

RATIO_MAX = 10.0
"""p90 over median of the best candidate, above which its prediction does not decide."""
SPREAD_MAX = 0.5
"""Mean absolute deviation of a worker's residuals, log seconds: at 0.5 its predictions are off by a factor of 1.6. Models that
fit their traffic stay below 0.15; one asked far outside of what it was taught showed 0.3 to 0.6, and did worse than lmetric."""
LINEAR_SAMPLES_MAX = 64
"""First tokens of one tick that a linear model learns from, the latest: each takes 16 us, and decisions wait meanwhile."""
ALONE_BRIEF_MAX = 4
"""Endpoints, up to which one question alone is decided the short way by a model: the rows of more are written whole for less
where what stood still is remembered packed (8 and 16 endpoints: 70 and 97 us of CPU in place of 73 and 113; two questions among
8: 60 in place of 71)."""
ZONE_LOW_S = 1.0
ZONE_HIGH_S = 10.0
"""The middle zone of `hierarchical`: below it any balance will do, above it only the count of requests tells."""
ZONE_SAMPLES_MIN = 50
"""Of that zone, before its model is asked."""
ZONE_SPREAD_MAX = 0.7


class Ranker(Protocol):
    """rank: never asked without candidates. learn: first tokens since the last call. forget: this endpoint is gone for good."""

    def rank(self, candidates: Sequence[Candidate]) -> Ranking: ...

    def learn(self, samples: Sequence[Sample]) -> None: ...

    def forget(self, endpoint: Endpoint) -> None: ...


class LeastPredicted:
    """By the corrected median of the model that serves, unless the best one's own prediction is too uncertain."""

    def __init__(self, forecaster: Forecaster, *, ratio_max: float = RATIO_MAX, spread_max: float = SPREAD_MAX) -> None:
        self.forecaster = forecaster
        self._ratio_max = ratio_max
        self._spread_max = spread_max
        self._latest: ModelBrief | None = None
        """One is in use at a time."""
        self.tally = Tally()

    def rank(self, candidates: Sequence[Candidate]) -> Ranking:
        ranking = self.judge(candidates)
        self.tally.count(ranking)
        return ranking

    def judge(self, candidates: Sequence[Candidate]) -> Ranking:
        """As `rank`, for somebody who only wants to know: it is not counted as a decision."""
        forecast = self.forecaster.forecast(candidates)
        if forecast is None:
            return Ranking(reason=NO_MODEL)
        p50_s = forecast.p50_s
        low = min(p50_s)
        best = p50_s.index(low)
        if forecast.p90_s[best] > self._ratio_max * low:
            return Ranking(forecast=forecast, reason=WIDE)
        if forecast.corrections[best].spread > self._spread_max:
            return Ranking(forecast=forecast, reason=UNSTEADY)
        return Ranking(p50_s, forecast)

    def takes(self, endpoints: int, questions: int) -> bool:
        if not self.forecaster.serving:
            return True
        return (endpoints <= ALONE_BRIEF_MAX or questions > 1) and self.forecaster.single(endpoints) is not None

    def brief(self, rows: Sequence[Row], choose: Chooser, now: float) -> Brief | str | None:
        forecaster = self.forecaster
        if not forecaster.serving:
            return NO_MODEL
        served = forecaster.single(len(rows))
        if served is None:
            return None
        corrections = [forecaster.correction(row.endpoint) for row in rows]
        bounds = log(self._ratio_max), self._spread_max
        if self._latest is not None:
            self._latest.close()
        self._latest = ModelBrief(rows, choose, *served, forecaster.model_id, corrections, now, bounds, self.tally)
        return self._latest

    def learn(self, samples: Sequence[Sample]) -> None:
        self.forecaster.learn(samples)

    def forget(self, endpoint: Endpoint) -> None:
        self.forecaster.forget(endpoint)


class LeastOnline:
    """By a linear model of the work ahead, the same for the fleet, times each worker's correction."""

    def __init__(self) -> None:
        self.model = OnlineLinear(work_columns, WORK_PRIOR)
        self._forecaster = Forecaster(self.model, "linear_online")
        self.tally = Tally()

    def rank(self, candidates: Sequence[Candidate]) -> Ranking:
        forecast = self._forecaster.forecast(candidates)
        ranking = Ranking(reason=NO_MODEL) if forecast is None else Ranking(forecast.p50_s, forecast)
        self.tally.count(ranking)
        return ranking

    def takes(self, endpoints: int, questions: int) -> bool:
        return self.model.steady

    def brief(self, rows: Sequence[Row], choose: Chooser, now: float) -> Brief | str | None:
        if not self.model.steady:
            return None
        corrections = [self._forecaster.correction(row.endpoint) for row in rows]
        return WorkBrief(rows, choose, self.model, self._forecaster.model_id, corrections, self.tally)

    def learn(self, samples: Sequence[Sample]) -> None:
        """The worker's own speed goes into its correction; the model learns what is left, so that neither learns it twice."""
        self._forecaster.learn(samples)
        samples = samples[-LINEAR_SAMPLES_MAX:]
        rows = Rows().of([sample.candidate for sample in samples])
        for row, sample in zip(rows, samples, strict=True):
            self.model.learn(row, sample.ttft_s / self._forecaster.factor(sample.candidate.endpoint))

    def forget(self, endpoint: Endpoint) -> None:
        self._forecaster.forget(endpoint)


class Layered:
    """The optimizer of `hierarchical`: in the middle zone the least TTFT by running requests and prompt length, learned from
    that zone alone; elsewhere the profile's scorers (least active). Its guard is the filter that all profiles share.

    Which zone a request is in says a linear model of all traffic: the zone's own model, which knows nothing else, would say
    "middle" whatever it is asked.
    """

    def __init__(self, *, low_s: float = ZONE_LOW_S, high_s: float = ZONE_HIGH_S) -> None:
        self._low_s = low_s
        self._high_s = high_s
        self._rows = Rows()
        self.all = OnlineLinear(work_columns, WORK_PRIOR)
        self.middle = OnlineLinear(running_columns, RUNNING_PRIOR)
        self.tally = Tally()

    def rank(self, candidates: Sequence[Candidate]) -> Ranking:
        ranking = self._judge(candidates)
        self.tally.count(ranking)
        return ranking

    @property
    def _learned(self) -> bool:
        return self.middle.samples >= ZONE_SAMPLES_MIN and self.middle.spread <= ZONE_SPREAD_MAX

    def takes(self, endpoints: int, questions: int) -> bool:
        return self._steady

    @property
    def _steady(self) -> bool:
        return self.all.steady and self.middle.steady

    def brief(self, rows: Sequence[Row], choose: Chooser, now: float) -> Brief | str | None:
        if not self._learned:
            return UNLEARNED
        if not self._steady:
            return None
        return LayersBrief(rows, choose, self.all, self.middle, (self._low_s, self._high_s), self.tally)

    def _judge(self, candidates: Sequence[Candidate]) -> Ranking:
        if not self._learned:
            return Ranking(reason=UNLEARNED)
        rows = self._rows.of_one(candidates)
        if not self._low_s <= float(self.all.predict(rows)[0].min()) < self._high_s:
            return Ranking(reason=OUTSIDE)
        p50, p90 = self.middle.predict(rows)
        costs = p50.tolist()
        return Ranking(costs, Forecast("hierarchical", costs, p90.tolist(), [], [1.0] * len(costs)))

    def learn(self, samples: Sequence[Sample]) -> None:
        samples = samples[-LINEAR_SAMPLES_MAX:]
        rows = self._rows.of([sample.candidate for sample in samples])
        for row, sample in zip(rows, samples, strict=True):
            self.all.learn(row, sample.ttft_s)
            if self._low_s <= sample.ttft_s < self._high_s:
                self.middle.learn(row, sample.ttft_s)

    def forget(self, endpoint: Endpoint) -> None:
        """It learns nothing of single endpoints."""

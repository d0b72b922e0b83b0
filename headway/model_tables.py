"""Models and their figures as tables on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.table import Table

from prediction.choices import Chosen
from prediction.scores import Score, Scores
from prediction.zones import ZONES
from proto import trainer_pb2


def zone_table(rows: Sequence[tuple[str, Scores]]) -> Table:
    """One line a model and zone, the whole last. rows: a name and its scores."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("model", "zone"):
        table.add_column(name, no_wrap=True)
    for name in ("samples", "MAE", "MAPE", "pinball p50", "p90", "p90 covers", "as predicted", "rank", "alike", "us/row"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, scores in rows:
        for zone, score in zip((*ZONES, "all"), (*scores.zones, scores.overall), strict=True):
            whole = zone == "all"
            cells = _cells(score)
            table.add_row(
                name, zone, *cells, _number(scores.predict_us, "{:.1f}") if whole else "", style="bold" if whole else ""
            )
    return table


LEGEND = (
    "zones by true TTFT: low < 1 s, medium 1 to 10 s, high from 10 s; 'as predicted': coverage by the predicted zone\n"
    "pinball: mean, of log seconds; rank: how often the fastest of 4 candidates is put first (alike: prompts of like length)"
)


def choice_table(rows: Sequence[tuple[str, tuple[tuple[Chosen, ...], Chosen]]]) -> Table:
    """One line a model and zone of the fastest, the whole last."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("model", "zone"):
        table.add_column(name, no_wrap=True)
    for name in ("choices", "all apart", "rank", "first apart", "rank", "near the best", "regret"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, (by_zone, overall) in rows:
        for zone, chosen in zip((*ZONES, "all"), (*by_zone, overall), strict=True):
            table.add_row(
                *(name, zone, f"{chosen.choices:,}", f"{chosen.apart:,}", _percent(chosen.rank_apart), f"{chosen.first:,}"),
                *(_percent(chosen.rank_first), _percent(chosen.near), _percent(chosen.regret)),
                style="bold" if zone == "all" else "",
            )
    return table


CHOICE_LEGEND = (
    "one request at every worker; rank: how often the fastest is put first, where any two differ by over 10 % (all apart),\n"
    "or the fastest from the next (first apart); near the best: the chosen one within 10 % of the fastest, where the slowest\n"
    "is not; regret: over all requests, how much longer the chosen ones took than the fastest"
)


def _cells(score: Score) -> list[str]:
    return [
        f"{score.samples:,}",
        _seconds(score.mae_s),
        _percent(score.mape),
        _number(score.pinball_p50, "{:.4f}"),
        _number(score.pinball_p90, "{:.4f}"),
        _percent(score.coverage_p90),
        _percent(score.coverage_predicted),
        _percent(score.rank_accuracy),
        _percent(score.rank_alike),
    ]


def model_table(models: Sequence[trainer_pb2.Model]) -> Table:
    """One line a model, newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("model", "state", "trained"):
        table.add_column(name, no_wrap=True)
    for name in ("samples", "MAPE low", "medium", "high", "p90 covers", "rank", "live loss", "live p90"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in reversed(models):
        zones = {score.zone: score for score in model.evaluation.zones}
        overall = model.evaluation.overall
        table.add_row(
            model.model_id,
            trainer_pb2.ModelState.Name(model.state).lower().replace("_", " "),
            time.strftime("%m-%d %H:%M:%S", time.localtime(model.trained_at)),
            f"{model.samples:,}",
            *(_percent(zones[zone].mape if zone in zones else math.nan) for zone in ZONES),
            _percent(overall.coverage_p90),
            _percent(overall.rank_accuracy),
            _number(model.live_loss, "{:.4f}"),
            _percent(model.live_coverage),
            style="bold" if model.state == trainer_pb2.SERVING else "",
        )
    return table


def scores_of(evaluation: trainer_pb2.Evaluation) -> Scores:
    """As the trainer has them."""
    zones = {score.zone: _score(score) for score in evaluation.zones}
    low, medium, high = (zones.get(zone, Score(0)) for zone in ZONES)
    return Scores((low, medium, high), _score(evaluation.overall), evaluation.predict_us)


def _score(said: trainer_pb2.ZoneScore) -> Score:
    return Score(
        samples=said.samples,
        mae_s=said.mae_s,
        mape=said.mape,
        pinball_p50=said.pinball_p50,
        pinball_p90=said.pinball_p90,
        coverage_p90=said.coverage_p90,
        coverage_predicted=said.coverage_predicted,
        rank_accuracy=said.rank_accuracy,
        rank_alike=said.rank_alike,
        rank_sets=said.rank_sets,
    )


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _percent(value: float) -> str:
    return _number(value * 100, "{:.1f} %")


def _number(value: float, shape: str) -> str:
    return "-" if math.isnan(value) else shape.format(value)

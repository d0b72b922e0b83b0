"""From the trainer's own types to its messages."""

from __future__ import annotations

import math

from prediction import bundle
from prediction.scores import Score, Scores
from prediction.zones import ZONES
from proto import trainer_pb2
from trainer.registry import Entry, Event, Standing
from trainer.rules import Live


def zone_score(zone: str, score: Score) -> trainer_pb2.ZoneScore:
    return trainer_pb2.ZoneScore(
        zone=zone,
        samples=score.samples,
        mae_s=score.mae_s,
        mape=score.mape,
        pinball_p50=score.pinball_p50,
        pinball_p90=score.pinball_p90,
        coverage_p90=score.coverage_p90,
        rank_accuracy=score.rank_accuracy,
        coverage_predicted=score.coverage_predicted,
        rank_alike=score.rank_alike,
        rank_sets=score.rank_sets,
    )


def evaluation(scores: Scores) -> trainer_pb2.Evaluation:
    return trainer_pb2.Evaluation(
        zones=[zone_score(zone, score) for zone, score in zip(ZONES, scores.zones, strict=True)],
        overall=zone_score("all", scores.overall),
        predict_us=scores.predict_us,
    )


def model(entry: Entry, standing: Standing, live: Live | None) -> trainer_pb2.Model:
    manifest = entry.manifest
    return trainer_pb2.Model(
        model_id=manifest.model_id,
        kind=manifest.kind,
        state=int(standing),  # type: ignore[arg-type]
        trained_at=manifest.trained_at,
        samples=manifest.samples,
        feature_version=manifest.feature_version,
        sha256=bundle.fingerprint(manifest),
        evaluation=None if entry.scores is None else evaluation(entry.scores),
        note=manifest.note,
        live_loss=math.nan if live is None else live.loss,
        live_coverage=math.nan if live is None else live.coverage,
    )


def event(happened: Event) -> trainer_pb2.ModelEvent:
    return trainer_pb2.ModelEvent(at=happened.at, what=happened.what, model_id=happened.model_id, why=happened.why)

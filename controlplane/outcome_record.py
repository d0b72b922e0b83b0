"""From what is known at the end of a request to the record that the trainer reads."""

from __future__ import annotations

from contract.features import VERSION
from contract.outcome import SCHEMA, End, Outcome
from controlplane.endpoint import Endpoint, features
from controlplane.ledger import Reservation
from controlplane.question import Ended, Request, Shed

NOT_KNOWN = -1


def _url(reservation: Reservation, endpoint: Endpoint | None) -> str:
    """Of the engine, whichever of its ranks it was."""
    return reservation.url.partition("#")[0] if endpoint is None else endpoint.record.url


def request_outcome(reservation: Reservation, ended: Ended, endpoint: Endpoint | None, *, decided_at: float) -> Outcome:
    """Of a reserved request. Without its decision (rebuilt from a claim) there are no features."""
    decision = reservation.decision
    if decision is None:
        return _rebuilt_outcome(reservation, ended, endpoint, decided_at=decided_at)
    request, row = decision.request, decision.candidate
    input_tokens = ended.prompt_tokens if ended.prompt_tokens >= 0 else reservation.input_tokens
    return Outcome(
        SCHEMA,
        reservation.decision_id,
        ended.request_id or request.request_id,
        decided_at,
        request.model,
        request.tenant,
        "" if endpoint is None else endpoint.record.worker,
        _url(reservation, endpoint),
        decision.policy,
        ended.end,
        ended.http_status,
        request.attempt,
        ended.streamed,
        input_tokens,
        row.matched_tokens,
        ended.cached_tokens,
        ended.output_tokens,
        ended.ttft_s,
        ended.itl_s,
        ended.e2e_s,
        decision.predicted_ttft_s or NOT_KNOWN,
        row.now - row.standing.reported_at,
        decision.candidates,
        VERSION,
        features(row),
        "",  # shed_reason
        "" if endpoint is None else endpoint.record.accelerator,
        decision.predicted_p90_s or NOT_KNOWN,
        decision.model_id,
        -1 if endpoint is None else endpoint.rank,
    )


def _rebuilt_outcome(reservation: Reservation, ended: Ended, endpoint: Endpoint | None, *, decided_at: float) -> Outcome:
    return Outcome(
        schema=SCHEMA,
        decision_id=reservation.decision_id,
        request_id=ended.request_id,
        decided_at=decided_at,
        model=ended.model,
        tenant="",
        worker="" if endpoint is None else endpoint.worker,
        url=_url(reservation, endpoint),
        policy="",
        end=ended.end,
        http_status=ended.http_status,
        attempt=0,
        streamed=ended.streamed,
        input_tokens=ended.prompt_tokens if ended.prompt_tokens >= 0 else reservation.input_tokens,
        matched_tokens=NOT_KNOWN,
        cached_tokens=ended.cached_tokens,
        output_tokens=ended.output_tokens,
        ttft_s=ended.ttft_s,
        itl_s=ended.itl_s,
        e2e_s=ended.e2e_s,
        predicted_ttft_s=NOT_KNOWN,
        snapshot_age_s=NOT_KNOWN,
        candidates=NOT_KNOWN,
        feature_version=VERSION,
        features=[],
        accelerator="" if endpoint is None else endpoint.record.accelerator,
        rank=-1 if endpoint is None else endpoint.rank,
    )


def fallback_outcome(ended: Ended, endpoint: Endpoint | None, *, decided_at: float) -> Outcome:
    """Of a request that a data plane placed by itself."""
    return Outcome(
        schema=SCHEMA,
        decision_id=0,
        request_id=ended.request_id,
        decided_at=decided_at - max(0.0, ended.e2e_s),
        model=ended.model,
        tenant="",
        worker="" if endpoint is None else endpoint.worker,
        url=ended.url,
        policy="fallback",
        end=ended.end,
        http_status=ended.http_status,
        attempt=0,
        streamed=ended.streamed,
        input_tokens=ended.prompt_tokens if ended.prompt_tokens >= 0 else ended.input_tokens,
        matched_tokens=NOT_KNOWN,
        cached_tokens=ended.cached_tokens,
        output_tokens=ended.output_tokens,
        ttft_s=ended.ttft_s,
        itl_s=ended.itl_s,
        e2e_s=ended.e2e_s,
        predicted_ttft_s=NOT_KNOWN,
        snapshot_age_s=NOT_KNOWN,
        candidates=NOT_KNOWN,
        feature_version=VERSION,
        features=[],
        accelerator="" if endpoint is None else endpoint.record.accelerator,
    )


def shed_outcome(request: Request, shed: Shed, *, policy: str, decided_at: float, candidates: int) -> Outcome:
    """Of a request that no endpoint ever saw."""
    return Outcome(
        schema=SCHEMA,
        decision_id=shed.decision_id,
        request_id=request.request_id,
        decided_at=decided_at,
        model=request.model,
        tenant=request.tenant,
        worker="",
        url="",
        policy=policy,
        end=End.SHED,
        http_status=404 if shed.reason.name == "UNKNOWN_MODEL" else 503,
        attempt=request.attempt,
        streamed=request.streams,
        input_tokens=request.input_tokens,
        matched_tokens=NOT_KNOWN,
        cached_tokens=NOT_KNOWN,
        output_tokens=0,
        ttft_s=NOT_KNOWN,
        itl_s=NOT_KNOWN,
        e2e_s=NOT_KNOWN,
        predicted_ttft_s=NOT_KNOWN,
        snapshot_age_s=NOT_KNOWN,
        candidates=candidates,
        feature_version=VERSION,
        features=[],
        shed_reason=shed.reason.name,
    )

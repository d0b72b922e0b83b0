"""Between the messages of proto/routing.proto and the director's plain values: the only place that knows both."""

from __future__ import annotations

from collections.abc import Iterable

from contract.features import FEATURES
from contract.routing import TIME_MAX, Asked, Said, unpack_said
from controlplane.endpoint import Endpoint, features
from controlplane.explain import Trace
from controlplane.ledger import Claim
from controlplane.question import Decision, Ended, Request, Shed
from controlplane.ranks import place
from controlplane.scheduler import Verdict, explain
from proto import routing_pb2 as pb


def said(batch: pb.RouteBatch) -> Said:
    """One message of a stream, packed or not. ValueError: `packed` cannot be read, or a time is none."""
    if batch.packed:
        return unpack_said(batch.packed)
    return Said(
        [asked(question) for question in batch.questions],
        [(first.decision_id, _time("ttft_s", first.ttft_s)) for first in batch.first_bytes],
        [ended(outcome) for outcome in batch.outcomes],
        [cancel.question_id for cancel in batch.cancels],
    )


def asked(question: pb.Question) -> Asked:
    """A question that came as a message."""
    request = Request(
        model=question.model,
        input_tokens=question.input_tokens,
        exact_tokens=question.chain_kind == pb.TOKENS,
        max_tokens=question.max_tokens,
        tenant=question.tenant,
        priority=question.priority,
        slo_ttft_ms=question.slo_ttft_ms,
        exclude=tuple(question.exclude),
        session=question.session,
        request_id=question.request_id,
        attempt=question.attempt,
        streams=question.streams,
    )
    chains = tuple((chain.block_size, chain.hashes) for chain in question.chains)
    return Asked(question.question_id, request, chains)


def decision(result: Decision | Shed, question_id: int, policy: str) -> pb.Decision:
    if isinstance(result, Shed):
        return pb.Decision(question_id=question_id, decision_id=result.decision_id, shed=shed(result), policy=policy)
    row = result.candidate
    endpoint = row.endpoint
    return pb.Decision(
        question_id=question_id,
        decision_id=result.decision_id,
        endpoint=endpoint.number,
        url=endpoint.record.url,
        worker=endpoint.record.worker,
        matched_tokens=row.matched_tokens,
        predicted_ttft_s=result.predicted_ttft_s,
        policy=result.policy,
        reason=result.reason,
        snapshot_age_s=row.report_age_s,
        candidates=result.candidates,
        data_parallel_rank=_rank(endpoint),
    )


def _rank(endpoint: Endpoint) -> int | None:
    return endpoint.rank if endpoint.rank >= 0 else None


def shed(refusal: Shed) -> pb.Shed:
    return pb.Shed(reason=refusal.reason.value, message=refusal.message, retry_after_s=refusal.retry_after_s)  # type: ignore[arg-type]


def _time(name: str, value: float) -> float:
    if not -TIME_MAX <= value <= TIME_MAX:
        raise ValueError(f"{name} is no time: {value}")
    return value


def ended(outcome: pb.Outcome) -> Ended:
    """ValueError: a time is none."""
    return Ended(
        decision_id=outcome.decision_id,
        end=outcome.end,
        http_status=outcome.http_status,
        ttft_s=_time("ttft_s", outcome.ttft_s) if outcome.HasField("ttft_s") else -1.0,
        e2e_s=_time("e2e_s", outcome.e2e_s),
        output_tokens=outcome.output_tokens,
        prompt_tokens=outcome.prompt_tokens if outcome.HasField("prompt_tokens") else -1,
        cached_tokens=outcome.cached_tokens if outcome.HasField("cached_tokens") else -1,
        streamed=outcome.streamed,
        itl_s=_time("itl_s", outcome.itl_s) if outcome.HasField("itl_s") else -1.0,
        request_id=outcome.request_id,
        model=outcome.model,
        url=outcome.url,
        input_tokens=outcome.input_tokens,
    )


def outcome(end: Ended) -> pb.Outcome:
    """Ends of our own (LOST) have no number on the wire and show as END_UNSPECIFIED."""
    known = end.end if end.end in pb.End.values() else pb.END_UNSPECIFIED
    message = pb.Outcome(
        decision_id=end.decision_id,
        end=known,  # type: ignore[arg-type]
        http_status=end.http_status,
        e2e_s=max(0.0, end.e2e_s),
        output_tokens=end.output_tokens,
        streamed=end.streamed,
        request_id=end.request_id,
        model=end.model,
        url=end.url,
        input_tokens=end.input_tokens,
    )
    if end.ttft_s >= 0:
        message.ttft_s = end.ttft_s
    if end.itl_s >= 0:
        message.itl_s = end.itl_s
    if end.prompt_tokens >= 0:
        message.prompt_tokens = end.prompt_tokens
    if end.cached_tokens >= 0:
        message.cached_tokens = end.cached_tokens
    return message


def claims(held: Iterable[pb.Held]) -> list[Claim]:
    return [
        Claim(entry.decision_id, _place(entry), entry.uncached_tokens, entry.input_tokens, entry.first_byte_seen)
        for entry in held
    ]


def _place(held: pb.Held) -> str:
    return place(held.url, held.data_parallel_rank)  # unset reads as 0, whose place it shares


def explanation(trace: Trace) -> pb.Explanation:
    result = trace.result
    message = pb.Explanation(
        decision_id=trace.decision_id,
        decided_at=trace.decided_at,
        policy=trace.profile.name,
        reason=result.message if isinstance(result, Shed) else result.reason,
        model=trace.request.model,
        request_id=trace.request.request_id,
        input_tokens=trace.request.input_tokens,
    )
    chosen = -1 if isinstance(result, Shed) else result.candidate.slot
    if trace.ranking is not None and trace.ranking.forecast is not None:
        message.model_id = trace.ranking.forecast.model_id
    for verdict in explain(trace.profile, trace.candidates, trace.request, trace.ranking):
        message.candidates.append(_candidate(verdict, verdict.candidate.slot == chosen))
    for endpoint, absence in trace.absent:
        message.candidates.add(
            endpoint=endpoint.number,
            worker=endpoint.worker,
            url=endpoint.url,
            rejected_by=absence,
            data_parallel_rank=_rank(endpoint),
        )
    if isinstance(result, Shed):
        message.shed.CopyFrom(shed(result))
    if trace.ended is not None:
        message.outcome.CopyFrom(outcome(trace.ended))
    return message


def _candidate(verdict: Verdict, chosen: bool) -> pb.CandidateView:
    row = verdict.candidate
    return pb.CandidateView(
        endpoint=row.endpoint.number,
        worker=row.endpoint.worker,
        url=row.endpoint.url,
        rejected_by=verdict.rejected_by,
        features=dict(zip(FEATURES, features(row), strict=True)),
        scores=verdict.scores,
        total=verdict.total,
        chosen=chosen,
        predicted_ttft_s=verdict.predicted_p50_s,
        predicted_p90_s=verdict.predicted_p90_s,
        correction=verdict.correction if verdict.predicted_p50_s else 0.0,
        data_parallel_rank=_rank(row.endpoint),
    )

"""What is said on a RouteStream as protobuf messages: for control planes that do not read packed ones."""

from __future__ import annotations

from contract.routing import Answer, Asked, Ended, Refusal, Said
from proto import routing_pb2 as pb


def batch(said: Said) -> pb.RouteBatch:
    return pb.RouteBatch(
        questions=[question(asked) for asked in said.questions],
        first_bytes=[pb.FirstByte(decision_id=decision_id, ttft_s=ttft_s) for decision_id, ttft_s in said.first_bytes],
        outcomes=[outcome(ended) for ended in said.outcomes],
        cancels=[pb.Cancel(question_id=question_id) for question_id in said.cancels],
    )


def question(asked: Asked) -> pb.Question:
    request = asked.request
    kind = pb.TOKENS if request.exact_tokens else pb.TEXT if asked.chains else pb.CHAIN_KIND_UNSPECIFIED
    return pb.Question(
        question_id=asked.question_id,
        model=request.model,
        input_tokens=request.input_tokens,
        chains=[pb.BlockChain(block_size=size, hashes=hashes) for size, hashes in asked.chains],
        chain_kind=kind,
        max_tokens=request.max_tokens,
        tenant=request.tenant,
        priority=request.priority,
        slo_ttft_ms=request.slo_ttft_ms,
        exclude=request.exclude,
        session=request.session,
        request_id=request.request_id,
        attempt=request.attempt,
        streams=request.streams,
    )


def outcome(ended: Ended) -> pb.Outcome:
    message = pb.Outcome(
        decision_id=ended.decision_id,
        end=ended.end,  # type: ignore[arg-type]  # the same numbers, as a test shows
        http_status=ended.http_status,
        e2e_s=ended.e2e_s,
        output_tokens=ended.output_tokens,
        streamed=ended.streamed,
        request_id=ended.request_id,
        model=ended.model,
        url=ended.url,
        input_tokens=ended.input_tokens,
    )
    if ended.ttft_s >= 0:
        message.ttft_s = ended.ttft_s
    if ended.itl_s >= 0:
        message.itl_s = ended.itl_s
    if ended.prompt_tokens >= 0:
        message.prompt_tokens = ended.prompt_tokens
    if ended.cached_tokens >= 0:
        message.cached_tokens = ended.cached_tokens
    return message


def answer(decision: pb.Decision) -> Answer:
    shed = decision.shed
    return Answer(
        decision.question_id,
        decision.decision_id,
        decision.endpoint,
        decision.url,
        decision.worker,
        decision.matched_tokens,
        decision.policy,
        decision.data_parallel_rank if decision.HasField("data_parallel_rank") else -1,
        decision.queued,
        Refusal(shed.reason, shed.message, shed.retry_after_s) if decision.HasField("shed") else None,
    )

"""A request as a question to the control plane. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.http1 import Request
from dataplane.keys import Key
from dataplane.openai import Ask
from dataplane.prompts import Prompt
from proto import routing_pb2 as pb


def build(
    request: Request, ask: Ask, prompt: Prompt, *, request_id: bytes, attempt: int, exclude: Sequence[int]
) -> pb.Question:
    """Without its question_id. exclude: endpoint numbers already tried."""
    question = pb.Question(
        model=ask.model,
        input_tokens=prompt.input_tokens,
        chain_kind=prompt.chain_kind,
        max_tokens=ask.max_tokens,
        request_id=request_id.decode("latin-1"),
        attempt=attempt,
        streams=ask.streams,
        exclude=exclude,
    )
    for size, hashes in prompt.chains:
        question.chains.add(block_size=size, hashes=hashes)
    for name, value in request.headers:
        if name.startswith(b"x-headway-"):
            _read_header(question, name, value)
    return question


def stamp(question: pb.Question, key: Key) -> None:
    """What the caller's key decides in place of the caller."""
    if not key.may_set_tenant or not question.tenant:
        question.tenant = key.tenant
    question.priority = min(question.priority, key.priority_max)


def _read_header(question: pb.Question, name: bytes, value: bytes) -> None:
    """The caller's wishes; what cannot be read is as if it were not there."""
    text = value.decode("latin-1").strip()
    try:
        if name == b"x-headway-slo-ttft-ms":
            question.slo_ttft_ms = max(0.0, float(text))
        elif name == b"x-headway-priority":
            question.priority = int(text)
        elif name == b"x-headway-tenant":
            question.tenant = text
        elif name == b"x-headway-session":
            question.session = text
    except ValueError:
        pass

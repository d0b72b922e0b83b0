"""What data planes and control plane say to each other on a RouteStream, packed.

`RouteBatch.packed` holds one `Said`, `DecisionBatch.packed` a list of `Answer`, both msgpack arrays with the fields in the
order below. Many questions are one field that is read in one go straight into the values that both sides work with; as
protobuf messages each would be built field by field, which costs more than deciding it. A process says in `packed_version`
which version it reads; what the other side does not read travels as the messages of proto/routing.proto. New fields go to the
end and have defaults, so that either side may be the newer one; any other change raises VERSION.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

VERSION = 1
TIME_MAX = 1e9
"""Seconds, or milliseconds of a bound: whoever says more says nothing."""


Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Seconds = Annotated[float, msgspec.Meta(ge=-TIME_MAX, le=TIME_MAX)]
"""No NaN and no infinity: whatever is learned from one is one from there on."""

RANK_STEP = 1 << 20
"""Between the numbers of an endpoint's ranks: more than there are endpoints."""


def numbered(endpoint: int, rank: int = -1) -> int:
    """How this endpoint, or one data-parallel rank of it, is named in `exclude` and `token_ages`. Whoever knows no such number
    ignores it."""
    return endpoint + (rank + 1) * RANK_STEP


def named(number: int) -> tuple[int, int]:
    """Endpoint and rank, -1 for no rank in particular."""
    return number % RANK_STEP, number // RANK_STEP - 1


class Request(msgspec.Struct, array_like=True, frozen=True, gc=False, kw_only=True):
    """What is asked for, without its prompt: small enough to be remembered by the thousands. exclude: see
    `numbered`."""

    model: str
    input_tokens: Tokens = 0
    exact_tokens: bool = True  # false: hashes of text chunks, or none; token counts estimated
    max_tokens: Tokens = 0
    tenant: str = ""
    priority: int = 0
    slo_ttft_ms: Seconds = 0.0
    exclude: tuple[int, ...] = ()
    session: str = ""
    request_id: str = ""
    attempt: int = 0
    streams: bool = False


class Asked(msgspec.Struct, array_like=True, gc=False):
    """A question. question_id: unique within the stream; chains: block size and packed block hashes, by size in use."""

    question_id: int
    request: Request
    chains: tuple[tuple[int, bytes], ...] = ()


class Ended(msgspec.Struct, array_like=True, frozen=True, gc=False, kw_only=True):
    """How one request at one endpoint ended, as its data plane saw it. -1: not known."""

    decision_id: int
    end: int  # contract.outcome.End
    http_status: int = 0
    ttft_s: Seconds = -1.0
    e2e_s: Seconds = -1.0
    output_tokens: int = 0
    prompt_tokens: int = -1
    cached_tokens: int = -1
    streamed: bool = False
    itl_s: Seconds = -1.0
    request_id: str = ""
    model: str = ""
    url: str = ""
    input_tokens: int = 0


class Said(msgspec.Struct, array_like=True, gc=False):
    """Everything of one message from a data plane. first_bytes: decision ids with TTFT in seconds; cancels: question ids;
    token_ages: endpoints or ranks (`numbered`), and how many seconds ago tokens came from there last, where that is news and
    wanted."""

    questions: list[Asked] = []
    first_bytes: list[tuple[int, Seconds]] = []
    outcomes: list[Ended] = []
    cancels: list[int] = []
    token_ages: list[tuple[int, Seconds]] = []


class Refusal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """reason: a number of headway.v1.Shed.Reason; message: one sentence for the caller."""

    reason: int
    message: str
    retry_after_s: float


class Answer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a request goes. refusal: nowhere, and why; queued: no answer yet, it follows; rank: data-parallel, -1: any."""

    question_id: int
    decision_id: int = 0
    endpoint: int = 0
    url: str = ""
    worker: str = ""
    matched_tokens: int = 0
    policy: str = ""
    rank: int = -1
    queued: bool = False
    refusal: Refusal | None = None


Placement = tuple[int, int, int, str, str, int, str]
"""The same as far as a placed question needs it: question_id, decision_id, endpoint, url, worker, matched_tokens, policy."""

_encoder = msgspec.msgpack.Encoder()
_said = msgspec.msgpack.Decoder(Said)
_answers = msgspec.msgpack.Decoder(list[Answer])


def pack(value: Said | Sequence[Answer | Placement]) -> bytes:
    """The content of a `packed` field."""
    return _encoder.encode(value)


def unpack_said(packed: bytes) -> Said:
    """ValueError (msgspec's): not a message of this version."""
    return _said.decode(packed)


def unpack_answers(packed: bytes) -> list[Answer]:
    """ValueError (msgspec's): not a message of this version."""
    return _answers.decode(packed)

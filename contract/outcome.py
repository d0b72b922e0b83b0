"""How one request at one endpoint ended: the record from which models are trained and policies judged.

The control plane writes one a request (one per attempt where a request was retried) to `keyspace.OUTCOMES`; the trainer
reads them. TTFT is the router's own: from sending the request to the endpoint to the first event with content.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

SCHEMA = 2
"""2: predicted_p90_s and model_id. New fields come last, so that a record of another schema still tells which it is."""


class End(IntEnum):
    """Numbers equal those of `headway.v1.End` in proto/routing.proto (a test compares them)."""

    UNSPECIFIED = 0
    COMPLETE = 1
    CLIENT_GONE = 2
    CONNECT_FAILED = 3
    RESET = 4
    TIMED_OUT = 5
    ENGINE_ERROR = 6
    ENGINE_ABORTED = 7
    BACK_PRESSURE = 8
    CALLER_ERROR = 9
    SHED = 100  # never sent to an endpoint
    LOST = 101  # its data plane vanished and did not claim it again


END_NAMES = {int(end): end.name for end in End}
"""Looked up once a request: making a member of a number takes a microsecond."""


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """One request at one endpoint. schema: SCHEMA. Counts are tokens, times seconds, -1 is "not known".

    Where many are made they are made of positional arguments: a call with more than fifteen keywords makes a dictionary of
    them, at eight times the price."""

    schema: int
    decision_id: int
    request_id: str
    decided_at: float  # Unix time
    model: str
    tenant: str
    worker: str
    url: str
    policy: str
    end: int  # End
    http_status: int
    attempt: int
    streamed: bool
    input_tokens: int
    matched_tokens: int  # predicted at decision time
    cached_tokens: int  # the engine's own figure
    output_tokens: int
    ttft_s: float
    itl_s: float
    e2e_s: float
    predicted_ttft_s: float  # the median that the decision was made by, its worker's correction included
    snapshot_age_s: float
    candidates: int
    feature_version: int
    features: list[float]  # contract.features.FEATURES of the chosen candidate at decision time; [] in fallback
    shed_reason: str = ""
    accelerator: str = ""
    predicted_p90_s: float = -1.0
    model_id: str = ""  # of the model that predicted, "" where none did
    rank: int = -1  # data-parallel, where the request was sent to one; -1: the engine has one alone, or chose by itself

    @property
    def engine(self) -> str:
        """What computed it: its worker, and its rank where that has several."""
        return self.worker if self.rank < 0 else f"{self.worker}/{self.rank}"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Outcome)


def encode(outcome: Outcome) -> bytes:
    """msgpack array, fields in the order above."""
    return _encoder.encode(outcome)


def decode(data: bytes) -> Outcome:
    """ValueError (msgspec.ValidationError): not an outcome, or one of another schema."""
    outcome = _decoder.decode(data)
    if outcome.schema != SCHEMA:
        raise ValueError(f"outcome of schema {outcome.schema}, this build reads {SCHEMA}")
    return outcome

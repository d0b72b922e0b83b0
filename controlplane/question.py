"""What the director is asked and what it says: plain values, free of the wire they travel on."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import Protocol

import msgspec

from contract.routing import Ended, Request
from controlplane.endpoint import Candidate

__all__ = ["Decided", "Decision", "Ended", "Question", "Request", "Shed", "ShedReason"]


class ShedReason(IntEnum):
    """Numbers equal those of `headway.v1.Shed.Reason` (a test compares them)."""

    UNKNOWN_MODEL = 1
    NO_WORKER = 2
    ALL_BREAKERS_OPEN = 3
    ALL_DRAINING = 4
    ALL_SATURATED = 5
    QUEUE_FULL = 6
    DEADLINE = 7
    EXCLUDED = 8
    SLO_UNREACHABLE = 9


class Question(msgspec.Struct, frozen=True, gc=False):
    """One request that wants an endpoint. `chains`: block size -> block hashes of the prompt's full blocks."""

    request: Request
    chains: dict[int, array[int]] = {}


class Decision(msgspec.Struct, gc=False):
    """An endpoint was chosen. `candidate` is its row as it was before this request was reserved on it. Of it, only
    `ended` changes."""

    decision_id: int  # 0: a dry run
    decided_at: float  # Unix time, s
    request: Request
    candidate: Candidate
    expected_tokens: int  # the index's match, also where the credit for it is withheld: what the self-check compares
    checkable: bool  # whether the engine's cached_tokens may be held against `expected_tokens`
    policy: str
    candidates: int  # left after the filters
    claimed_tokens: int = 0  # the match, were an answer passed back unchanged; 0: nothing depends on it
    last_block: int = 0  # hash of the prompt's last full block; 0: the prompt is not known block by block

    predicted_ttft_s: float = 0.0  # the median, s; 0: nothing was predicted
    predicted_p90_s: float = 0.0
    model_id: str = ""  # of the model that predicted
    fell_back: str = ""  # why a policy that predicts did not decide by its prediction
    ended: Ended | None = None  # how its request ended

    @property
    def tokens_ahead(self) -> int:
        """Uncached ones queued there before it, and its own."""
        return self.candidate.uncached_tokens + self.candidate.prefill_tokens

    @property
    def seat_awaited(self) -> bool:
        """Whether all seats there were taken."""
        return 0 < self.candidate.seats <= self.candidate.active

    @property
    def reason(self) -> str:
        """What decided it, in a few words; made when somebody asks."""
        return in_words(self)


def in_words(decided: Decided) -> str:
    """What decided it."""
    row = decided.candidate
    there = f"{row.matched_tokens} of {row.input_tokens} tokens cached, {row.batch} requests there"
    if decided.fell_back:
        return f"not by prediction ({decided.fell_back}): {there}"
    if decided.predicted_ttft_s:
        return f"first token in {decided.predicted_ttft_s:.3g} s, p90 {decided.predicted_p90_s:.3g} s: {there}"
    return there


class Decided(Protocol):
    """What is asked of a decision later: of a `Decision`, or of a usual one (explain.Placed)."""

    ended: Ended | None

    @property
    def decision_id(self) -> int: ...
    @property
    def request(self) -> Request: ...
    @property
    def candidate(self) -> Candidate: ...
    @property
    def expected_tokens(self) -> int: ...
    @property
    def checkable(self) -> bool: ...
    @property
    def policy(self) -> str: ...
    @property
    def candidates(self) -> int: ...
    @property
    def claimed_tokens(self) -> int: ...
    @property
    def last_block(self) -> int: ...
    @property
    def predicted_ttft_s(self) -> float: ...
    @property
    def predicted_p90_s(self) -> float: ...
    @property
    def model_id(self) -> str: ...
    @property
    def fell_back(self) -> str: ...
    @property
    def tokens_ahead(self) -> int: ...
    @property
    def seat_awaited(self) -> bool: ...
    @property
    def reason(self) -> str: ...


class Shed(msgspec.Struct, frozen=True, gc=False):
    """An expected refusal. `message` is one sentence for the caller."""

    reason: ShedReason
    message: str
    retry_after_s: float = 0.0
    decision_id: int = 0

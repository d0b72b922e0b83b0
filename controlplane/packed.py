"""Between packed messages (contract.routing) and the director's plain values."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from contract.blocks import unpack_hashes
from contract.routing import Answer, Asked, Refusal
from controlplane.question import Decision, Question, Shed
from controlplane.speculation import Chain

TUPLE_BLOCKS_MAX = 12
"""Chains up to this length are read as tuples: see speculation.Chain."""

CHAINS: dict[int, Callable[[bytes], Chain]] = {
    8 * blocks: Struct(f"<{blocks}Q").unpack for blocks in range(1, TUPLE_BLOCKS_MAX + 1)
}
"""Bytes of a short chain -> what reads it."""

CHAIN_BYTES = 8 * TUPLE_BLOCKS_MAX
READERS = [CHAINS.get(length) for length in range(CHAIN_BYTES + 1)]
"""The same by length; None: no chain is so long."""


def question(asked: Asked) -> Question:
    """As the director wants it. ValueError: hashes that are not a multiple of 8 bytes."""
    if not asked.chains:
        return Question(asked.request)
    return Question(asked.request, {size: unpack_hashes(hashes) for size, hashes in asked.chains})


def readable(asked: Asked) -> Question:
    """A chain that cannot be read matches nothing; the request itself may be served."""
    try:
        return question(asked)
    except ValueError:
        return Question(asked.request)


def answer(result: Decision | Shed | None, question_id: int, policy: str) -> Answer:
    """What a data plane needs of it. None: it follows."""
    if result is None:
        return Answer(question_id, queued=True)
    if isinstance(result, Shed):
        refusal = Refusal(result.reason, result.message, result.retry_after_s)
        return Answer(question_id, result.decision_id, policy=policy, refusal=refusal)
    row = result.candidate
    endpoint = row.standing.endpoint
    record, rank = endpoint.record, endpoint.rank
    number = row.standing.slot if rank < 0 else endpoint.number
    return Answer(question_id, result.decision_id, number, record.url, record.worker, row.matched_tokens, result.policy, rank)

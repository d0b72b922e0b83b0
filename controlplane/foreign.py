"""What other control planes have in flight at an endpoint, beside what this one has. Pure.

`Foreign` is the sum over those that are heard, made when a message comes; it hangs at the endpoint's `Load`, and where there is
none nothing else changes. A row of the endpoint (its `Standing`) is then made of `together`: a load as if all of it had been
sent by one router. What is not told, request by request, is taken to be alike: the prompts that wait there are equal parts of
their sum, behind our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.ledger import Load, Reservation, Reserved, attention_pairs
from controlplane.queue_plan import PLAYED_MAX


@dataclass(frozen=True, slots=True)
class Part:
    """Of one control plane; moments are monotonic seconds here."""

    active: int
    no_first_byte: int
    prefill_tokens: int
    prefill_pairs: float
    context_tokens: int
    queued_since: float
    moved_at: float
    head_tokens: int
    head_input_tokens: int


class Foreign:
    """The sum of parts, of which at least one is active."""

    __slots__ = ("active", "context_tokens", "moved_at", "no_first_byte", "pairs", "queue", "queued_since", "tokens")

    def __init__(self, parts: Iterable[Part]) -> None:
        listed = [part for part in parts if part.active]
        queued = [part for part in listed if part.no_first_byte]
        self.active = sum(part.active for part in listed)
        self.no_first_byte = sum(part.no_first_byte for part in queued)
        self.tokens = sum(part.prefill_tokens for part in queued)
        self.pairs = sum(part.prefill_pairs for part in queued)
        self.context_tokens = sum(part.context_tokens for part in listed)
        self.moved_at = max((part.moved_at for part in listed), default=0.0)
        self.queued_since = max((part.queued_since for part in queued), default=0.0)
        self.queue = [reservation for part in queued for reservation in _alike(part)][:PLAYED_MAX]

    def together(self, load: Load) -> Load:
        """Ours and theirs as one; nobody changes it."""
        queue = dict(load.queue)
        since = load.prefill_since if queue else self.queued_since
        for number, reservation in enumerate(self.queue, start=1):
            queue[-number] = reservation
        return Load(
            active=load.active + self.active,
            no_first_byte=load.no_first_byte + self.no_first_byte,
            prefill_tokens=load.prefill_tokens + self.tokens,
            prefill_pairs=load.prefill_pairs + self.pairs,
            prefill_since=since,
            queue=queue,
            context_tokens=load.context_tokens + self.context_tokens,
            ends=load.ends,
            changes=load.changes,
            moved_at=max(load.moved_at, self.moved_at) if load.active else self.moved_at,
            token_at=load.token_at,
        )


def _alike(part: Part) -> list[Reservation]:
    """One reservation a prompt that waits, the first as it is and the others equal parts of the rest."""
    others = part.no_first_byte - 1
    of_head = attention_pairs(part.head_tokens, part.head_input_tokens)
    head = _waiting(part.head_tokens, part.head_input_tokens, of_head)
    if not others:
        return [head]
    tokens = max(0, part.prefill_tokens - part.head_tokens) // others
    return [head] + [_waiting(tokens, tokens, max(0.0, part.prefill_pairs - of_head) / others)] * min(others, PLAYED_MAX)


def _waiting(uncached: int, tokens: int, pairs: float) -> Reservation:
    return Reserved(0, "", "", 0, uncached, tokens, 0.0, None, _NOWHERE, pairs)


_NOWHERE = Load()

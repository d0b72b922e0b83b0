"""Blocks that an answer has just filled, credited before the engine's own word of them is here.

An engine puts the blocks of an answer into its cache as they fill and announces each with the step that filled it, the last one
beside the last token. But the two take different ways. The token goes to the caller, whose next turn may be back within a
millisecond; the event goes through the engine's publisher, the agent, Redis and the reader, and where processors are short each
of these waits for its turn. (Beside real engines on two busy cores the event left 3 to 60 ms before the response's last byte
and was in Redis up to a second after it. Of next turns that came at once, one in ten was judged without the last block of its
own conversation, and never without more than two.)

What is known when a response ends: the prompt's chain, how many tokens it had, and how many were generated. All but the last of
these are in the cache, so it is known how many blocks are full, not what their hashes are. The next turn tells: if its chain
runs through the end of that prompt, and the index follows it up to the last block or two of the answer, then those are what
the engine has yet to say. That is a guess like any other (see speculation). Where the caller changed the answer's last words it
is wrong, by BLOCKS_MAX blocks at most, and it dies after TTL_S, by when the engine's word is here. An answer whose beginning
is not passed back (reasoning that the template leaves out) earns nothing: its announced blocks do not match either.

Not every answer comes back as the blocks it was. Callers that replay recordings send other words; text need not read back as
the tokens it was written in (of what random weights write, four answers in ten do not; where one does not, the number of its
tokens nearly always differs, but nobody tells the control plane that number). So such claims are held against what became of
them, the engine's event or its `cached_tokens` (see Trust), and then

    all came true, of late        they are credited at once
    none did                      they are not; nor where the answer cannot be short of events any more (`heard`)
    some did, or it is not known  they are not, and the question is worth holding back for the event (`awaited`, see settling);
                                  but an answer whose first blocks were announced and follow is credited until one was wrong

Beside two real engines on two cores that others used, too (free text of random weights, no pause between turns), 84 to 88 % of
the requests were predicted to the block without the wait and 99.2 to 100 % with it; what is left are events later than that.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from controlplane.speculation import Chain

NEVER = float("-inf")
BLOCKS_MAX = 2
"""Blocks at an answer's end that may be credited unseen."""
TTL_S = 2.0
"""How long an engine's event may be on its way."""
PATIENCE_S = 0.1
"""How long after an answer's end its events are awaited, while nothing is known of how long this engine's take."""
PATIENCE_S_MIN = 0.05
PATIENCE_LAGS = 2
"""Else so many times what they have been taking at most, lately."""
LAG_FADE = 0.98
"""What is left of that with each event that takes less."""
ANSWERS_MAX = 65_536
"""Answers remembered, over all workers."""
WALK_BLOCKS_MAX = 32
"""How far before the end of what is announced the end of a prompt is looked for: longer answers earn nothing here."""


TRUST_AFTER = 12
"""Claims in a row that must come true before they are credited; twice as many after each that did not, half as many
after each such row while trust is given."""
TRUST_AFTER_MAX = 96
RECENT = 16
"""Where none of so many claims in a row came true, none is waited for until one does."""


class Trust:
    """Whether callers pass answers back as the engines gave them, judged by what engines then found in their caches."""

    __slots__ = ("_needed", "_recent", "_streak", "given")

    def __init__(self) -> None:
        self.given = False
        self._streak = 0
        self._needed = TRUST_AFTER
        self._recent: deque[bool] = deque(maxlen=RECENT)

    @property
    def hopeless(self) -> bool:
        """Hardly any claim comes true: replayed recordings, reasoning that is not passed back."""
        return len(self._recent) == RECENT and not any(self._recent)

    @property
    def mixed(self) -> bool:
        """Some claims come true and some do not."""
        return not self.given and not all(self._recent) and not self.hopeless

    def judge(self, *, came_true: bool) -> None:
        self._recent.append(came_true)
        if came_true:
            self._streak += 1
            if self._streak >= self._needed:
                if self.given:
                    self._needed = max(TRUST_AFTER, self._needed // 2)
                self.given, self._streak = True, 0
        else:
            self.given, self._streak = False, 0
            self._needed = min(TRUST_AFTER_MAX, 2 * self._needed)


class _Answer(NamedTuple):
    slot: int
    life: int
    prompt_blocks: int
    filled_blocks: int
    ended_at: float


class Answers:
    """Those of the last seconds, by the last full block of their prompts. Pure; `now` never goes back."""

    __slots__ = ("_by_block", "_heard", "_lags", "_lives", "_most", "awaited", "claims", "order", "trust")

    def __init__(self, answers_max: int = ANSWERS_MAX) -> None:
        self._most = answers_max
        self.trust = Trust()
        self.claims: dict[int, int] = {}
        """Slot -> blocks, of the last chain asked for: with those that were not announced, credited or not."""
        self.awaited: dict[int, float] = {}
        """Slot -> until when, of the last chain asked for: where blocks are not credited that may come any moment."""
        self._by_block: dict[int, list[_Answer]] = {}
        self.order: deque[tuple[float, int]] = deque()
        """(when, last block) of each, oldest first."""
        self._lags: dict[int, float] = {}  # slot -> s from an engine's step to the index, at most and lately
        self._heard: dict[int, float] = {}  # slot -> everything that its engine did until then has been taken in
        self._lives: dict[int, int] = {}  # slot -> how often it was emptied

    def __len__(self) -> int:
        return len(self.order)

    def add(self, slot: int, last_block: int, prompt_blocks: int, filled_blocks: int, now: float) -> None:
        """last_block: hash of the prompt's last full block; prompt_blocks, filled_blocks: without and with the answer."""
        if len(self.order) >= self._most:
            self._forget_oldest()
        self._by_block.setdefault(last_block, []).append(
            _Answer(slot, self._lives.get(slot, 0), prompt_blocks, filled_blocks, now)
        )
        self.order.append((now, last_block))

    def heard(self, slot: int, until: float) -> None:
        """Whatever this slot's engine did until then is in the index: no answer that ended before lacks a block any more."""
        if until > self._heard.get(slot, NEVER):
            self._heard[slot] = until

    def lagged(self, slot: int, lag_s: float) -> None:
        """An event of this slot's engine is in the index, so long after the step that it tells of."""
        self._lags[slot] = max(lag_s, LAG_FADE * self._lags.get(slot, 0.0))

    def _patience_s(self, slot: int) -> float:
        lag_s = self._lags.get(slot)
        return PATIENCE_S if lag_s is None else max(PATIENCE_S_MIN, PATIENCE_LAGS * lag_s)

    def extend(self, hashes: Chain, found: dict[int, int]) -> dict[int, int]:
        """found: slot -> blocks it holds of the chain, above 0. Returns it with what recent answers add, in another object."""
        begun: set[int] = set()  # slots that announced blocks of the answer: the caller passes it back
        self.claims, self.awaited = {}, {}
        for position in set(found.values()):
            if position < len(hashes):
                self._claim_from(hashes, position, found, begun)
        claims, trust = self.claims, self.trust
        if not claims:
            return found
        credited = claims
        if not trust.given:
            credited = {slot: claims[slot] for slot in begun} if begun and not trust.mixed else {}
        for slot in list(self.awaited) if trust.hopeless else credited:
            del self.awaited[slot]
        return found | credited if credited else found

    def _claim_from(self, hashes: Chain, position: int, found: dict[int, int], begun: set[int]) -> None:
        start = position - WALK_BLOCKS_MAX if position > WALK_BLOCKS_MAX else 0
        before = hashes[start:position]
        if self._by_block.keys().isdisjoint(before):
            return
        for prompt_blocks, block in enumerate(before, start + 1):
            for answer in self._by_block.get(block, ()):
                slot, life, its_blocks, filled, ended_at = answer
                here = its_blocks == prompt_blocks and found.get(slot) == position and self._lives.get(slot, 0) == life
                here = here and self._heard.get(slot, NEVER) < ended_at
                if here and 0 < filled - position <= BLOCKS_MAX:
                    self.claims[slot] = max(self.claims.get(slot, 0), min(filled, len(hashes)))
                    self.awaited[slot] = max(self.awaited.get(slot, NEVER), ended_at + self._patience_s(slot))
                    if position > its_blocks:
                        begun.add(slot)

    def forget(self, slot: int) -> None:
        """This slot's cache was emptied, or is another's."""
        self._lives[slot] = self._lives.get(slot, 0) + 1
        self._heard.pop(slot, None)
        self._lags.pop(slot, None)

    def expire(self, now: float) -> None:
        """Forgets what is too old."""
        while self.order and self.order[0][0] <= now - TTL_S:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, block = self.order.popleft()
        answers = self._by_block[block]
        del answers[0]
        if not answers:
            del self._by_block[block]

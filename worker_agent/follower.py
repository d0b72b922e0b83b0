"""One engine's KV events, followed: joins event source, decoder and block set. Rebuilt when the engine is another one."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from runtime.clock import Clock
from worker_agent.block_set import BlockSet
from worker_agent.discovery import EngineIdentity
from worker_agent.event_source import EventSource, RankEvent
from worker_agent.kv_events import Batch, Decoder, MalformedPayload
from worker_agent.sequence import Begin

log = logging.getLogger(__name__)

EVENTS_TOGETHER_MAX = 128
"""Payloads that follow one another go to the block set together, for few events cost most a piece; up to about so many events,
for more do not stay in the processor's caches."""


class Follower:
    """identity: whose events; block_size: tokens a block; virgin: the engine had computed nothing yet."""

    def __init__(self, identity: EngineIdentity, block_size: int, clock: Clock, *, virgin: bool) -> None:
        """EventSourceError: an endpoint that is none."""
        self.identity = identity
        self.block_size = block_size
        self.blocks = BlockSet(identity.base.name, block_size, identity.cache_blocks_per_rank)
        self._clock = clock
        self._source = EventSource(identity.endpoints, clock.now(), virgin=virgin)
        self._decoders = {rank: Decoder() for rank in self._source.ranks}
        for rank in self._source.ranks:
            self.blocks.expect(rank)
        self.malformed: Counter[str] = Counter()
        self.payloads = 0
        self._ignored_said: set[str] = set()

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Calls `wake` in the running event loop once there is something to poll. Poll before asking again."""
        self._source.on_arrival(wake)

    @property
    def exact(self) -> bool:
        """Whether the block set is the engine's, as far as events can tell."""
        return self.blocks.exact and not self._source.behind

    @property
    def has_more(self) -> bool:
        """Whether there is more to poll already, or soon, without an arrival."""
        return self._source.has_more

    @property
    def ranks(self) -> tuple[int, ...]:
        return self._source.ranks

    def poll(self) -> set[int]:
        """Apply what has arrived. Returns the ranks that turned out to be a new run of the engine."""
        fresh: set[int] = set()
        for event in self._source.poll(self._clock.now()):
            if self._apply(event):
                fresh.add(event.rank)
        self._say_ignored()
        return fresh

    def restart(self, ranks: tuple[int, ...]) -> None:
        """Another run of the engine serves these ranks: `poll` begins them anew."""
        self._source.restart(ranks, self._clock.now())

    def emptied(self) -> None:
        """The engine dropped its cache by itself."""
        self.blocks.emptied(self._clock.unix())

    def close(self) -> None:
        self._source.close()

    def _apply(self, event: RankEvent) -> bool:
        what, rank = event.what, event.rank
        if isinstance(what, list):
            self._deliver(rank, what)
            return False
        if isinstance(what, Begin):
            self.blocks.begin(rank, self._clock.unix())
            return what.fresh
        self._hole(rank, f"events from {what.missed_from} on were missed for good")
        return False

    def _deliver(self, rank: int, payloads: list[bytes]) -> None:
        self.payloads += len(payloads)
        apply_all(self.blocks, rank, self._decoders[rank], payloads, self._malformed)

    def _malformed(self, rank: int, error: MalformedPayload) -> None:
        """Whatever it said is lost: as good as a missed payload."""
        self.malformed[error.kind] += 1
        if self.malformed[error.kind] == 1:
            log.warning("malformed KV event payload", extra={"f": {"rank": rank, "error": error}})
        self.blocks.hole(rank, self._clock.unix())

    def _hole(self, rank: int, why: str) -> None:
        log.warning("the view of the KV cache is no longer exact", extra={"f": {"rank": rank, "why": why}})
        self.blocks.hole(rank, self._clock.unix())

    def _say_ignored(self) -> None:
        for reason in self.blocks.ignored.keys() - self._ignored_said:
            self._ignored_said.add(reason)
            log.info("KV events ignored", extra={"f": {"reason": reason}})


def apply_all(
    blocks: BlockSet, rank: int, decoder: Decoder, payloads: list[bytes], malformed: Callable[[int, MalformedPayload], None]
) -> None:
    """Payloads that follow one another, in order. malformed: told of each that is none, between those before and after it."""
    decode, batches, events = decoder.decode, list[Batch](), 0
    for payload in payloads:
        try:
            batch = decode(payload)
        except MalformedPayload as error:
            if batches:
                blocks.apply(rank, *batches)
            batches, events = [], 0
            malformed(rank, error)
            continue
        batches.append(batch)
        events += len(batch.events)
        if events >= EVENTS_TOGETHER_MAX:
            blocks.apply(rank, *batches)
            batches, events = [], 0
    if batches:
        blocks.apply(rank, *batches)

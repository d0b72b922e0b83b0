"""The worker agent in virtual time: its own core (`worker_agent.block_set`), its timers, its numbering, its silences.

A batch of block changes leaves `DELTA_DELAY_S` after the first event in it; a report leaves every `REPORT_INTERVAL_S` with the
engine's figures as of the end of its last iteration. What was lost on the way is asked for again: `snapshot` answers.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Protocol, cast

from contract.keyspace import (
    BlockDelta,
    DeltaFlag,
    EngineReport,
    EngineState,
    ModelCard,
    RankFigures,
    SnapshotManifest,
    Tier,
    WorkerRecord,
)
from emulator.block_pool import Event, Removed, Stored
from emulator.presets import Preset
from simulation.bus import BlockSnapshot
from simulation.timeline import Timeline
from simulation.worker import Rank, SimWorker
from worker_agent import kv_events
from worker_agent.block_set import BlockSet

DELTA_DELAY_S = 0.015
REPORT_INTERVAL_S = 0.1
RANKS_SINCE = "0.11.1"
"""Said to be its version by an engine of several ranks: the first that is sent to each of them."""

_StoredEvent, _RemovedEvent, _ClearedEvent = kv_events.STORED[1], kv_events.REMOVED[1], kv_events.CLEARED[1]


class Bus(Protocol):
    """Who reads what the agent publishes."""

    def registered(self, record: WorkerRecord) -> None: ...

    def reported(self, report: EngineReport) -> None: ...

    def changed(self, worker: str, delta: BlockDelta) -> None: ...

    def position(self, worker: str) -> str:
        """Id of the last entry in the worker's stream of deltas."""


class SimAgent:
    """phase_s: when its first report leaves, so that not all agents speak at once. events False: the engine sends none."""

    def __init__(
        self, worker: SimWorker, preset: Preset, timeline: Timeline, bus: Bus, *, phase_s: float, events: bool = True
    ) -> None:
        self._worker = worker
        self._preset = preset
        self._timeline = timeline
        self._bus = bus
        self._events = events
        self._incarnation = -1
        self._epoch = 0
        self._reports = 0
        self._sequence = 0
        self._flushing = False
        self._silent_until_s = 0.0
        self._to_lose = 0
        self._unsent = 0
        self._blocks = self._empty()
        self.lost = 0
        """Deltas that left and never arrived."""
        worker.on_events = self._on_events
        self._begin_epoch()
        timeline.after(phase_s, self._report)

    @property
    def engine(self) -> SimWorker:
        """The one beside it."""
        return self._worker

    @property
    def follows_events(self) -> bool:
        return self._events

    @property
    def incarnation(self) -> int:
        """Of the engine it follows."""
        return self._incarnation

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def sequence(self) -> int:
        """Of the last delta sent."""
        return self._sequence

    # ------------------------------------------------------------------------------------------------------------- faults

    def silence(self, for_s: float) -> None:
        """Neither reports nor registrations nor deltas for so long; what it follows goes on."""
        self._silent_until_s = max(self._silent_until_s, self._timeline.now() + for_s)

    def lose(self, count: int) -> None:
        """The next `count` deltas are numbered and sent, and reach nobody."""
        self._to_lose += count

    # ---------------------------------------------------------------------------------------------------------- snapshots

    def snapshot(self) -> BlockSnapshot | None:
        """None: it does not answer now."""
        if self._timeline.now() < self._silent_until_s or not self._worker.alive:
            return None
        self._send_delta()
        chunks = tuple(
            BlockDelta(
                self._epoch, self._sequence, self._timeline.unix(), hashes, rank=rank, tier=tier, flags=DeltaFlag.SNAPSHOT
            )
            for rank, tier, hashes in self._blocks.chunks(65_536)
        )
        blocks = sum(len(chunk.added) for chunk in chunks)
        manifest = SnapshotManifest(
            epoch=self._epoch,
            sequence=self._sequence,
            snapshot_id=self._sequence,
            chunks=len(chunks),
            blocks=blocks,
            stream_id=self._bus.position(self._worker.name),
        )
        return BlockSnapshot(manifest, chunks)

    @property
    def pending_blocks(self) -> int:
        """Changes that no delta has told yet, those of a rank whose turn comes next among them."""
        return self._blocks.changed_blocks + self._unsent

    def held(self, rank: int) -> set[int]:
        """For checkers: block hashes it believes this rank to hold."""
        return self._blocks.held(rank)

    # ------------------------------------------------------------------------------------------------------------- inside

    def _empty(self) -> BlockSet:
        return BlockSet(self._preset.model, self._preset.block_size, self._preset.num_blocks)

    def _begin_epoch(self) -> None:
        self._incarnation = self._worker.incarnation
        self._epoch += 1
        self._sequence = 0
        self._blocks = self._empty()
        for rank in range(self._worker.num_ranks):
            self._blocks.begin(rank, self._timeline.unix())
        if self._timeline.now() >= self._silent_until_s:
            self._register()
        self._schedule_flush()

    def _register(self) -> None:
        preset, ranks = self._preset, self._worker.num_ranks
        card = ModelCard(preset.model, preset.model, preset.model, preset.max_model_len)
        self._bus.registered(
            WorkerRecord(
                worker=self._worker.name,
                url=self._worker.url,
                epoch=self._epoch,
                models=(card,),
                block_size=preset.block_size,
                cache_blocks=preset.num_blocks * ranks,
                sends_kv_events=self._events,
                accelerator=preset.accelerator,
                max_num_seqs=preset.max_num_seqs if ranks == 1 else 0,  # it would be of all, or of each, by who asks
                engine_version="" if ranks == 1 else RANKS_SINCE,
                data_parallel_size=ranks,
                named_ranks=0 if ranks == 1 else ranks,
            )
        )

    def _report(self) -> None:
        self._timeline.after(REPORT_INTERVAL_S, self._report)
        if self._worker.alive and self._worker.incarnation != self._incarnation:
            self._begin_epoch()
        if self._timeline.now() < self._silent_until_s:
            return
        self._register()
        self._reports += 1
        self._bus.reported(self._row())

    def _row(self) -> EngineReport:
        if not self._worker.alive:
            return EngineReport(
                worker=self._worker.name,
                epoch=self._epoch,
                sequence=self._reports,
                state=EngineState.UNREACHABLE,
                scrape_age_s=0.0,
                delta_sequence=self._sequence,
            )
        ranks = self._worker.ranks
        gauges, counters = [rank.gauges for rank in ranks], [rank.counters for rank in ranks]
        return EngineReport(
            worker=self._worker.name,
            epoch=self._epoch,
            sequence=self._reports,
            state=EngineState.READY,
            scrape_age_s=0.0,
            running=sum([one.running for one in gauges]),
            waiting=sum([one.waiting for one in gauges]),
            kv_usage=max([one.usage for one in gauges]),
            generation_tokens=sum([one.generation_tokens for one in counters]),
            prompt_tokens=sum([one.prompt_tokens for one in counters]),
            prefix_query_tokens=sum([one.query_tokens for one in counters]),
            prefix_hit_tokens=sum([one.hit_tokens for one in counters]),
            preemptions=sum([one.preemptions for one in counters]),
            delta_sequence=self._sequence,
            blocks_exact=self._blocks.exact,
            ranks=tuple([_figures(rank) for rank in ranks]) if len(ranks) > 1 else (),
        )

    def _on_events(self, rank: int, events: list[Event], now: float) -> None:
        if not self._events:
            return
        if self._worker.incarnation != self._incarnation:
            self._begin_epoch()
        self._blocks.apply(rank, _batch(events, self._timeline.unix(), self._preset.block_size))
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flushing and self._events:
            self._flushing = True
            self._timeline.after(DELTA_DELAY_S, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._timeline.now() < self._silent_until_s:
            self._flushing = True
            self._timeline.at(self._silent_until_s, self._flush)
            return
        self._send_delta()

    def _send_delta(self) -> None:
        changes = self._blocks.take()
        self._unsent = len(changes)
        for change in changes:
            self._unsent -= 1
            self._sequence += 1
            flags = DeltaFlag.CLEAR if change.cleared else DeltaFlag.NONE
            delta = BlockDelta(
                self._epoch, self._sequence, change.at, change.added, change.removed, change.rank, Tier(change.tier), flags
            )
            if self._to_lose:
                self._to_lose -= 1
                self.lost += 1
            else:
                self._bus.changed(self._worker.name, delta)


def _figures(rank: Rank) -> RankFigures:
    gauges, counters = rank.gauges, rank.counters
    return RankFigures(gauges.running, gauges.waiting, gauges.usage, counters.generation_tokens, counters.prompt_tokens)


@dataclass(slots=True)
class _Batch:
    """What `kv_events.Decoder` yields, without the detour over bytes."""

    ts: float
    events: list[kv_events.Event]


def _batch(events: list[Event], unix_s: float, block_size: int) -> kv_events.Batch:
    """In the engine's order; removals side by side become one event."""
    converted: list[kv_events.Event] = []
    removed: list[kv_events.EngineHash] = []
    for event in events:
        if isinstance(event, Removed):
            if not removed:
                converted.append(_RemovedEvent(block_hashes=removed, medium="GPU", group_idx=0))
            removed.append(event.hash)
            continue
        removed = []
        converted.append(_stored(event, block_size) if isinstance(event, Stored) else _ClearedEvent())
    return cast("kv_events.Batch", _Batch(unix_s, converted))


def _stored(event: Stored, block_size: int) -> kv_events.Event:
    """Simulated requests use no adapters and no salts, so there are no extra keys."""
    tokens = array("I")
    tokens.frombytes(event.token_ids)
    return _StoredEvent(
        block_hashes=list(event.hashes),
        token_ids=cast("list[int]", tokens),  # any sequence of integers will do, and this one costs nothing
        block_size=block_size,
        parent_block_hash=event.parent,
        medium="GPU",
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )

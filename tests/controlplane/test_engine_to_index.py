"""From an engine's steps to the index, over random histories: what is credited is what the engine held, or nothing.

Real are the event decoder, the block set, the delta log, the codecs, the follower and the index. The bus between them is a
model of Redis that loses what Redis can lose: deltas, the stream, a chunk, the manifest. The judge is a plain dictionary of
copies per engine hash, written from what vLLM's events mean; it shares no code with them.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contract import blocks, keyspace
from contract.keyspace import BlockDelta, DeltaFlag, EngineReport, EngineState, SnapshotManifest
from controlplane.block_sync import LOST_S_MAX, RETRY_S_MAX, Follower, Offer, Phase, Take
from controlplane.index_state import IndexState
from controlplane.prefix_index import BlockChange, PrefixIndex
from worker_agent.block_set import BlockSet
from worker_agent.delta_log import DeltaLog
from worker_agent.kv_events import Decoder

SIZE = 2
CHUNK_BLOCKS = 5
SLOT = 3
PROMPTS = 6
PROMPT_BLOCKS = 4
SETTLE_ROUNDS = 4

MOSTLY = st.sampled_from([True] * 15 + [False])
"""An event that is missed makes the agent DEGRADED until the engine clears its cache: too often, and nothing else is tried."""
FOLLOWS = st.sampled_from(["", "published", "published and read", "published and read"])


def prompt(number: int, length: int) -> list[int]:
    """Token ids; every other prompt begins as the one before it does."""
    return [1000 * (number // 2) + at if at < SIZE else 1000 * number + at for at in range(SIZE * length)]


def chain(tokens: list[int]) -> list[int]:
    return list(blocks.chain(blocks.pack_tokens(tokens), SIZE, blocks.root_hash("m")))


class Engine:
    """Copies per engine hash. Its names are its own, and others after a restart."""

    def __init__(self) -> None:
        self.run = 0
        self.copies: dict[int, int] = {}
        self.block_of: dict[int, int] = {}

    def held(self) -> set[int]:
        return {self.block_of[name] for name, count in self.copies.items() if count}

    def restart(self) -> None:
        self.run += 1
        self.copies.clear()
        self.block_of.clear()

    def store(self, number: int, length: int) -> dict[str, Any]:
        """The part of a prompt that is not cached, or its last block once more."""
        tokens = prompt(number, length)
        hashes = chain(tokens)
        names = [hash((self.run, block)) & (2**63 - 1) for block in hashes]
        cached = next((at for at, name in enumerate(names) if not self.copies.get(name)), length - 1)
        for name, block in zip(names[cached:], hashes[cached:], strict=True):
            self.block_of[name] = block
            self.copies[name] = self.copies.get(name, 0) + 1
        return {
            "type": "BlockStored",
            "block_hashes": names[cached:],
            "parent_block_hash": names[cached - 1] if cached else None,
            "token_ids": tokens[SIZE * cached :],
            "block_size": SIZE,
            "medium": "GPU",
        }

    def evict(self, pick: int) -> dict[str, Any]:
        present = sorted(name for name, count in self.copies.items() if count)
        name = present[pick % len(present)]
        self.copies[name] -= 1
        return {"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU"}

    def clear(self) -> dict[str, Any]:
        self.copies.clear()
        return {"type": "AllBlocksCleared"}


class Bus:
    """What Redis keeps of one worker."""

    def __init__(self) -> None:
        self.clock = 0
        self.flush()

    def flush(self) -> None:
        self.stream: list[tuple[str, bytes]] = []
        self.manifest: bytes | None = None
        self.chunks: dict[tuple[int, int], bytes] = {}
        self.resync = False

    def add(self, data: bytes) -> str:
        self.clock += 1
        self.stream.append((f"{self.clock}-0", data))
        return self.stream[-1][0]

    def after(self, entry_id: str) -> list[tuple[str, bytes]]:
        seen = int(entry_id.split("-")[0])
        return [(at, data) for at, data in self.stream if int(at.split("-")[0]) > seen]


class AgentSide:
    """Block set, delta log and codecs, moved in the publisher's order."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.decoder = Decoder()
        self.blocks = BlockSet("m", SIZE)
        self.log = DeltaLog()
        self.stream_id = "0"
        self.snapshots = 0
        self.begin()

    def begin(self) -> None:
        """Another run of the engine: another epoch."""
        self.log.begin(self.log.epoch + 7)
        self.blocks.begin(0, 0.0)

    def hear(self, event: dict[str, Any]) -> None:
        self.blocks.apply(0, self.decoder.decode(msgspec.msgpack.encode([1.0, [event], 0])))

    def publish(self, *, lost: bool) -> None:
        """lost: the deltas were taken, and are on no stream: a Redis that died after it had answered."""
        if self.log.snapshot_due != "new epoch":
            self.log.append(self.blocks.take())
            for sequence, data in list(self.log.unsent):
                if not lost:
                    self.stream_id = self.bus.add(data)
                self.log.acknowledge(sequence)
        if self.bus.resync:
            self.bus.resync = False
            self.log.want_snapshot("a reader asked")
        if self.log.snapshot_due:
            self.snapshot()

    def snapshot(self) -> None:
        new_epoch = self.log.snapshot_due == "new epoch"
        changes = self.blocks.take()
        if not new_epoch:
            self.log.append(changes)
        self.snapshots += 1
        pieces = list(self.blocks.chunks(CHUNK_BLOCKS))
        for number, (rank, tier, hashes) in enumerate(pieces):
            delta = BlockDelta(self.log.epoch, self.log.sequence, 0.0, hashes, rank=rank, tier=tier, flags=DeltaFlag.SNAPSHOT)
            self.bus.chunks[self.snapshots, number] = keyspace.encode_delta(delta)
        manifest = SnapshotManifest(
            epoch=self.log.epoch,
            sequence=self.log.sequence,
            snapshot_id=self.snapshots,
            chunks=len(pieces),
            blocks=sum(len(hashes) for _, _, hashes in pieces),
            stream_id=self.stream_id,
        )
        self.bus.manifest = keyspace.encode_manifest(manifest)
        sequence = self.log.sequence
        if new_epoch:
            self.stream_id = self.bus.add(self.log.marker(clear=manifest.blocks == 0))
        self.log.snapshot_written(sequence, 0.0)

    def report(self) -> EngineReport:
        return EngineReport(
            worker="w",
            epoch=self.log.epoch,
            sequence=1,
            state=EngineState.READY,
            scrape_age_s=0.0,
            delta_sequence=self.log.sequence,
            blocks_exact=self.blocks.exact,
        )


class Reader:
    """Follower and index, moved in the order of `ingest`."""

    def __init__(self, bus: Bus, epoch: int) -> None:
        self.bus = bus
        self.index = PrefixIndex()
        self.follow(epoch, 0.0)

    def follow(self, epoch: int, now: float) -> None:
        self.index.attach(SLOT, capacity_blocks=1000, exact=True)
        self.follower = Follower(epoch, now)

    def read(self, report: EngineReport | None, now: float) -> None:
        if report is not None and report.epoch != self.follower.epoch:
            self.follow(report.epoch, now)
        if self.follower.due(now):
            self.load(now)
        if self.follower.phase is Phase.FOLLOWING:
            for at, data in self.bus.after(self.follower.read_from):
                if not self.take(at, keyspace.decode_delta(data), now):
                    break
        if report is not None:
            self.follower.report(report)
        if not self.follower.drained(now):
            self.index.clear(SLOT)
        self.index.set_state(SLOT, self.follower.state)

    def take(self, at: str, delta: BlockDelta, now: float) -> bool:
        take = self.follower.take(delta, at, now)
        if take is Take.APPLY:
            if delta.flags & DeltaFlag.CLEAR:
                self.index.clear(SLOT, delta.rank)
            self.index.apply([BlockChange(SLOT, delta.rank, delta.added, delta.removed)])
        elif take is not Take.SKIP:
            self.index.clear(SLOT)
            return False
        return True

    def load(self, now: float) -> None:
        data = self.bus.manifest
        manifest = None if data is None else keyspace.decode_manifest(data)
        offer = self.follower.offer(manifest, now)
        if offer is not Offer.LOAD or manifest is None:
            self.bus.resync = True
            return
        self.index.clear(SLOT)
        for number in range(manifest.chunks):
            chunk = self.bus.chunks.get((manifest.snapshot_id, number))
            if chunk is None:
                self.follower.lost(now)
                self.index.clear(SLOT)
                return
            self.index.store(SLOT, keyspace.decode_delta(chunk).added)
        self.follower.loaded()

    def credited(self) -> set[int]:
        everything = {block for number in range(PROMPTS) for block in chain(prompt(number, PROMPT_BLOCKS))}
        return {block for block in everything if self.index.match(array("Q", [block])).get(SLOT)}


class History(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.engine = Engine()
        self.bus = Bus()
        self.agent = AgentSide(self.bus)
        self.reader = Reader(self.bus, self.agent.log.epoch)
        self.truth: dict[tuple[int, int], set[int]] = {}
        """What the engine held when the delta of this epoch and number was made (or before it, where events were missed)."""

    def happen(self, event: dict[str, Any], heard: bool, then: str) -> None:
        if heard:
            self.agent.hear(event)
        else:
            self.agent.blocks.hole(0, 1.0)  # the agent notices: its sequence numbers say so
        if "published" in then:
            self.the_agent_publishes(False)
        if "read" in then:
            self.the_control_plane_reads(True, 0.02)

    @rule(number=st.integers(0, PROMPTS - 1), length=st.integers(1, PROMPT_BLOCKS), heard=MOSTLY, then=FOLLOWS)
    def the_engine_stores(self, number: int, length: int, heard: bool, then: str) -> None:
        self.happen(self.engine.store(number, length), heard, then)

    @rule(number=st.integers(0, PROMPTS - 1), length=st.integers(1, PROMPT_BLOCKS), times=st.integers(2, 4), then=FOLLOWS)
    def the_engine_computes_a_block_again_and_again(self, number: int, length: int, times: int, then: str) -> None:
        """As for as many requests at once: each has a copy of its own."""
        for _ in range(times):
            self.the_engine_stores(number, length, True, "")
        self.happen(self.engine.store(number, length), True, then)

    @precondition(lambda self: self.engine.held())
    @rule(pick=st.integers(0, 1000), heard=MOSTLY, then=FOLLOWS)
    def the_engine_evicts(self, pick: int, heard: bool, then: str) -> None:
        self.happen(self.engine.evict(pick), heard, then)

    @rule(how=st.sampled_from(["clears its cache", "restarts"]))
    def the_engine_forgets(self, how: str) -> None:
        if how == "restarts":
            self.engine.restart()
            self.agent.begin()
        else:
            self.happen(self.engine.clear(), True, "")

    @rule(lost=st.sampled_from([False, False, False, True]))
    def the_agent_publishes(self, lost: bool) -> None:
        if self.agent.log.snapshot_due == "new epoch":
            self.truth[self.agent.log.epoch, 0] = self.engine.held()  # its snapshot comes before its first delta
        self.agent.publish(lost=lost)
        self.truth[self.agent.log.epoch, self.agent.log.sequence] = self.engine.held()

    @rule(reported=st.booleans(), waited_s=st.sampled_from([0.0, 0.02, LOST_S_MAX, RETRY_S_MAX]))
    def the_control_plane_reads(self, reported: bool, waited_s: float) -> None:
        self.now += waited_s
        follower = self.reader.follower
        unread = self.bus.after(follower.read_from) if follower.phase is Phase.FOLLOWING else []
        another_run = any(keyspace.decode_delta(data).epoch != follower.epoch for _, data in unread)
        self.reader.read(self.agent.report() if reported else None, self.now)
        if another_run and self.reader.follower is follower:
            assert self.reader.credited() == set(), "blocks of a run that it has read the end of"

    @rule(prompts=st.lists(st.integers(0, PROMPTS - 1), min_size=1, max_size=4), length=st.integers(1, PROMPT_BLOCKS))
    def another_run_fills_its_cache_before_it_is_known(self, prompts: list[int], length: int) -> None:
        """Its deltas are read before any report of it, with numbers that the run before may have had, too, or not yet."""
        self.the_engine_forgets("restarts")
        self.the_agent_publishes(False)
        for number in prompts:
            self.the_engine_stores(number, length, True, "published")
        self.the_control_plane_reads(False, 0.02)

    @rule()
    def the_control_plane_restarts(self) -> None:
        self.reader = Reader(self.bus, self.agent.log.epoch)

    @rule(
        what=st.sampled_from(["everything", "older deltas", "one delta", "one chunk", "the manifest"]), which=st.integers(0, 20)
    )
    def redis_loses(self, what: str, which: int) -> None:
        bus = self.bus
        if what == "everything":
            bus.flush()
            self.agent.stream_id = "0"
        elif what == "older deltas":
            del bus.stream[: which % (len(bus.stream) + 1)]
        elif what == "one delta" and bus.stream:
            del bus.stream[which % len(bus.stream)]
        elif what == "one chunk" and bus.chunks:
            del bus.chunks[sorted(bus.chunks)[which % len(bus.chunks)]]
        elif what == "the manifest":
            bus.manifest = None

    @rule()
    def all_comes_to_rest(self) -> None:
        """Whatever was lost, a few rounds of publishing and reading make it whole."""
        for _ in range(SETTLE_ROUNDS):
            self.the_agent_publishes(False)
            self.the_control_plane_reads(True, LOST_S_MAX + 0.1)
            self.now += RETRY_S_MAX
        if self.agent.blocks.exact:
            assert self.reader.index.state(SLOT) is IndexState.EXACT
            assert self.reader.credited() == self.engine.held()
        else:
            assert self.reader.index.state(SLOT) is IndexState.DEGRADED
            assert self.reader.credited() == set()

    @invariant()
    def what_is_credited_was_held_when_the_last_delta_read_was_made(self) -> None:
        credited = self.reader.credited()
        if self.reader.index.state(SLOT) is IndexState.EXACT:
            follower = self.reader.follower
            earlier = [number for epoch, number in self.truth if epoch == follower.epoch and number <= follower.sequence]
            assert credited <= self.truth[follower.epoch, max(earlier)]
        else:
            assert credited == set()


History.TestCase.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)
TestHistory = History.TestCase

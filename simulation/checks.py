"""What must hold whatever happens, checked while it happens. The checkers know the parts only from outside.

once          every request ends exactly once, and none is forgotten
reservations  the ledger's loads are those of the requests in flight, at any moment the two can see each other; 0 at the end
decisions     no worker is chosen that was excluded, is not serving, or whose breaker admits nobody
outcomes      one record per reservation and per refusal, not one more
index         what the index says EXACT of is what the engine holds, as of the last delta; likewise the agent's set
engines       at the end nothing runs, no block is held, nobody listens
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

from controlplane.index_state import IndexState
from controlplane.ledger import Load
from controlplane.question import Decision
from controlplane.ranks import place
from emulator.block_pool import Event
from simulation.agent import SimAgent
from simulation.control import SimControl
from simulation.proxy import Call, Proxy, Result
from simulation.truth import Truth
from simulation.worker import Rank, SimWorker

LOADS_EVERY = 4
"""Changes of reservations between two comparisons of all loads (the number of reservations is compared at each)."""
BLOCKS_EVERY = 64
"""Batches of KV events, and deltas, between two comparisons of block sets."""
BLOCKS_PROBED = 64


class Violation(AssertionError):
    """Something that must hold does not. The message names the two sides that disagree."""


def hold(condition: bool, message: str) -> None:
    """Violation: the condition does not."""
    if not condition:
        raise Violation(message)


class Checker:
    """deep: follows every engine's blocks, too (about half as much work again)."""

    def __init__(
        self, workers: Mapping[str, SimWorker], control: SimControl, *, deep: bool, models: Mapping[str, tuple[str, int]]
    ) -> None:
        """workers: by URL; models: name and block size of what each of them serves, by its name."""
        self._workers = workers
        self._control = control
        self._deep = deep
        self._models = models
        self._truths = {worker.name: (worker.incarnation, self._truths_of(worker)) for worker in workers.values()}
        self._ended: set[int] = set()
        self._reservations = 0
        self._changes = 0
        self._batches = 0
        self._deltas = 0
        self.compared_blocks = 0
        """Comparisons of a whole block set: a run in which it stays 0 has proved nothing about the index."""
        self.compared_loads = 0

    # ------------------------------------------------------------------------------------------------------------ requests

    def decided(self, call: Call, decision: Decision) -> None:
        candidate = decision.candidate
        endpoint = candidate.endpoint
        name = f"request {call.job.index}"
        hold(self._workers[endpoint.url] not in call.tried, f"{name}: {endpoint.worker} was chosen, which it has tried")
        hold(endpoint.serving, f"{name}: {endpoint.worker} was chosen, which is {endpoint.absence}")
        hold(candidate.admits, f"{name}: {endpoint.worker} was chosen, whose breaker admits nobody")
        self._reservations += 1

    def ended(self, result: Result) -> None:
        hold(result.index not in self._ended, f"request {result.index} ended twice, now as {result.fate.value}")
        self._ended.add(result.index)

    def reservations_changed(self, proxy: Proxy) -> None:
        """Only asked while the two see each other: a broken stream lets them differ until it is back."""
        reserved, held = len(self._control.ledger), proxy.num_reserved
        hold(reserved == held, f"{reserved} reservations, {held} requests in flight that hold one")
        self._changes += 1
        if self._changes % LOADS_EVERY == 0:
            self._compare_loads(proxy)

    def _compare_loads(self, proxy: Proxy) -> None:
        self.compared_loads += 1
        wanted = {place: Load() for place in self._places()}
        for claim in proxy.claims():
            load = wanted[claim.url]
            load.active += 1
            load.context_tokens += claim.input_tokens
            if not claim.first_byte_seen:
                load.no_first_byte += 1
                load.prefill_tokens += claim.uncached_tokens
        for where, load in wanted.items():
            have, want = _figures(self._control.ledger.load(where)), _figures(load)
            hold(
                have == want, f"{where}: the ledger has {have}, in flight are {want} (active, no first byte, prefill, context)"
            )

    def _places(self) -> list[str]:
        """Where requests are counted: at every worker, or at each of its ranks."""
        return [place(url, rank) for url, worker in self._workers.items() for rank in range(worker.num_ranks)]

    # -------------------------------------------------------------------------------------------------------------- blocks

    def _truths_of(self, worker: SimWorker) -> list[Truth]:
        """By rank."""
        return [Truth(*self._models[worker.name]) for _ in range(worker.num_ranks)]

    def followed(self, worker: SimWorker, rank: int, events: list[Event]) -> None:
        """Called with a batch of KV events, before anybody else reacts to it."""
        if not self._deep:
            return
        incarnation, truths = self._truths[worker.name]
        if incarnation != worker.incarnation:
            truths = self._truths_of(worker)
            self._truths[worker.name] = (worker.incarnation, truths)
        truths[rank].follow(events)
        self._batches += 1
        if self._batches % BLOCKS_EVERY == 0:
            self._compare_pool(worker, worker.ranks[rank], truths[rank])

    def _compare_pool(self, worker: SimWorker, rank: Rank, truth: Truth) -> None:
        pool = rank.engine.pool.cached_counts()
        hold(pool == truth.copies, f"{worker.name}: its events make {len(truth)} blocks, its pool has {len(pool)}")

    def delta_sent(self, worker: SimWorker, agent: SimAgent) -> None:
        """Called after a delta reached the control plane, or was lost."""
        self._deltas += 1
        if self._deep and self._deltas % BLOCKS_EVERY == 0:
            self._compare_blocks(worker, agent, BLOCKS_PROBED)

    def _compare_blocks(self, worker: SimWorker, agent: SimAgent, probed: int) -> None:
        if not agent.follows_events:
            return
        incarnation, truths = self._truths[worker.name]
        if not worker.alive or incarnation != worker.incarnation or agent.incarnation != incarnation:
            return
        name = worker.name
        wanted = [truth.held() for truth in truths]
        for rank, blocks in enumerate(wanted):
            held = agent.held(rank)
            hold(held == blocks, f"{name}: the agent believes in {len(held)} blocks, the engine announced {len(blocks)}")
        slots = self._control.slots_of(name)
        if (
            not slots
            or agent.pending_blocks
            or self._control.position(worker.name) != (agent.epoch, agent.sequence, IndexState.EXACT)
        ):
            return
        index = self._control.index
        counts = [sum(map(len, wanted))] if len(slots) == 1 else [len(blocks) for blocks in wanted]
        for slot, owed in zip(slots, counts, strict=True):
            count = index.blocks(slot)
            hold(count == owed, f"{name}: the index counts {count} blocks, the engine holds {owed}")
        for rank, truth in enumerate(truths):
            for block in truth.some(probed):
                found = index.match(array("Q", (block,)))
                hold(slots[min(rank, len(slots) - 1)] in found, f"{name}: block {block:x} is held and not in the index")
        self.compared_blocks += 1

    # ----------------------------------------------------------------------------------------------------------------- end

    def finish(self, proxy: Proxy, agents: Mapping[str, SimAgent], *, jobs: int, outcomes_exact: bool) -> None:
        """After everything has settled. outcomes_exact: no report of an end could get lost on its way."""
        hold(len(self._ended) == jobs, f"{jobs} requests arrived, {len(self._ended)} ended")
        hold(not proxy.calls, f"{len(proxy.calls)} requests are still open at the router")
        left = len(self._control.ledger)
        hold(left == 0, f"{left} reservations are left after the last request")
        for where in self._places():
            load = _figures(self._control.ledger.load(where))
            hold(load == (0, 0, 0, 0), f"{where}: {load} are left in the ledger (active, no first byte, prefill, context)")
        for worker in self._workers.values():
            if self._deep:
                self._compare_blocks(worker, agents[worker.name], max(map(len, self._truths[worker.name][1])))
            self._idle(worker)
        if outcomes_exact:
            sheds = sum(self._control.director.tally.sheds.values())
            recorded, owed = self._control.tally.outcomes, self._reservations + sheds
            hold(recorded == owed, f"{recorded} outcomes for {self._reservations} reservations and {sheds} refusals")

    def _idle(self, worker: SimWorker) -> None:
        hold(worker.num_listening == 0, f"{worker.name}: {worker.num_listening} requests are still listened for")
        for rank in worker.ranks if worker.alive else ():
            live, used = rank.engine.num_live, rank.engine.pool.num_used
            hold(live == 0 and used == 0, f"{worker.name}: {live} requests and {used} blocks in use after the last request")


def _figures(load: Load) -> tuple[int, int, int, int]:
    return load.active, load.no_first_byte, load.prefill_tokens, load.context_tokens

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
from emulator.block_pool import Event
from simulation.agent import SimAgent
from simulation.control import SimControl
from simulation.proxy import Call, Proxy, Result
from simulation.truth import Truth
from simulation.worker import SimWorker

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
        self._truths = {worker.name: (worker.incarnation, self._truth(worker)) for worker in workers.values()}
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
        wanted = {url: Load() for url in self._workers}
        for claim in proxy.claims():
            load = wanted[claim.url]
            load.active += 1
            load.context_tokens += claim.input_tokens
            if not claim.first_byte_seen:
                load.no_first_byte += 1
                load.prefill_tokens += claim.uncached_tokens
        for url, load in wanted.items():
            have, want = _figures(self._control.ledger.load(url)), _figures(load)
            hold(have == want, f"{url}: the ledger has {have}, in flight are {want} (active, no first byte, prefill, context)")

    # -------------------------------------------------------------------------------------------------------------- blocks

    def _truth(self, worker: SimWorker) -> Truth:
        return Truth(*self._models[worker.name])

    def followed(self, worker: SimWorker, events: list[Event]) -> None:
        """Called with a batch of KV events, before anybody else reacts to it."""
        if not self._deep:
            return
        incarnation, truth = self._truths[worker.name]
        if incarnation != worker.incarnation:
            truth = self._truth(worker)
            self._truths[worker.name] = (worker.incarnation, truth)
        truth.follow(events)
        self._batches += 1
        if self._batches % BLOCKS_EVERY == 0:
            self._compare_pool(worker, truth)

    def _compare_pool(self, worker: SimWorker, truth: Truth) -> None:
        pool = worker.engine.pool.cached_counts()
        hold(pool == truth.copies, f"{worker.name}: its events make {len(truth)} blocks, its pool has {len(pool)}")

    def delta_sent(self, worker: SimWorker, agent: SimAgent) -> None:
        """Called after a delta reached the control plane, or was lost."""
        self._deltas += 1
        if self._deep and self._deltas % BLOCKS_EVERY == 0:
            self._compare_blocks(worker, agent, BLOCKS_PROBED)

    def _compare_blocks(self, worker: SimWorker, agent: SimAgent, probed: int) -> None:
        if not agent.follows_events:
            return
        incarnation, truth = self._truths[worker.name]
        if not worker.alive or incarnation != worker.incarnation or agent.incarnation != incarnation:
            return
        held = agent.held()
        wanted = truth.held()
        hold(held == wanted, f"{worker.name}: the agent believes in {len(held)} blocks, the engine announced {len(wanted)}")
        slot = self._control.slot_of(worker.name)
        if (
            slot is None
            or agent.pending_blocks
            or self._control.position(worker.name) != (agent.epoch, agent.sequence, IndexState.EXACT)
        ):
            return
        index = self._control.index
        count = index.blocks(slot)
        hold(count == len(wanted), f"{worker.name}: the index counts {count} blocks, the engine holds {len(wanted)}")
        for block in truth.some(probed):
            hold(slot in index.match(array("Q", (block,))), f"{worker.name}: block {block:x} is held and not in the index")
        self.compared_blocks += 1

    # ----------------------------------------------------------------------------------------------------------------- end

    def finish(self, proxy: Proxy, agents: Mapping[str, SimAgent], *, jobs: int, outcomes_exact: bool) -> None:
        """After everything has settled. outcomes_exact: no report of an end could get lost on its way."""
        hold(len(self._ended) == jobs, f"{jobs} requests arrived, {len(self._ended)} ended")
        hold(not proxy.calls, f"{len(proxy.calls)} requests are still open at the router")
        left = len(self._control.ledger)
        hold(left == 0, f"{left} reservations are left after the last request")
        for url, worker in self._workers.items():
            load = _figures(self._control.ledger.load(url))
            hold(load == (0, 0, 0, 0), f"{url}: {load} are left in the ledger (active, no first byte, prefill, context)")
            if self._deep:
                self._compare_blocks(worker, agents[worker.name], len(self._truths[worker.name][1]))
            self._idle(worker)
        if outcomes_exact:
            sheds = sum(self._control.director.tally.sheds.values())
            recorded, owed = self._control.tally.outcomes, self._reservations + sheds
            hold(recorded == owed, f"{recorded} outcomes for {self._reservations} reservations and {sheds} refusals")

    def _idle(self, worker: SimWorker) -> None:
        hold(worker.num_listening == 0, f"{worker.name}: {worker.num_listening} requests are still listened for")
        if worker.alive:
            live, used = worker.engine.num_live, worker.engine.pool.num_used
            hold(live == 0 and used == 0, f"{worker.name}: {live} requests and {used} blocks in use after the last request")


def _figures(load: Load) -> tuple[int, int, int, int]:
    return load.active, load.no_first_byte, load.prefill_tokens, load.context_tokens

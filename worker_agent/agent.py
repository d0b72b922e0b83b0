"""The three loops of an agent, and the only place that knows what an epoch is.

    scrape    10 Hz, one at a time       /metrics (and /health twice a second) -> EngineWatch; a restart -> new epoch
    follow    at the first event after a pause, then in ticks
                                         KV events -> block set; a new run of the engine -> new epoch
    publish   behind each of these that changed something
                                         changed blocks; with each scrape, or without one in its time, a report

A scrape that takes seconds (a saturated API server) does not hold up the reports: they go on with the last figures and say how
old these are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from contract.keyspace import EngineReport, EngineState, WorkerRecord
from runtime.clock import Clock
from runtime.tasks import stop_if_cancelled
from worker_agent.bell import Bell
from worker_agent.discovery import EngineIdentity, identify, record_of
from worker_agent.engine_client import EngineClient, EngineError, Refused, Silent
from worker_agent.engine_info import BadAnswer, parse_models
from worker_agent.engine_metrics import EngineMetrics, NotMetrics, parse
from worker_agent.event_source import EventSourceError
from worker_agent.follower import Follower
from worker_agent.publisher import Publisher
from worker_agent.settings import Settings
from worker_agent.watch import EngineWatch

log = logging.getLogger(__name__)

TICK_S = 0.020
"""While there is something to do. The next turn of a conversation may follow within milliseconds of the last, so what comes
after a pause does not wait for a tick."""
MORE_S = 0.005
"""Between two looks of which the first left something: each takes a bounded part of a flood, or of a replay."""
IDLE_S_MAX = 0.250
"""Between two looks at sockets that say nothing: for whoever waits for a time to be over. Arrivals wake."""
RETRY_S = 0.015
"""Before a report that could not be sent is tried again, where Redis may be asked."""
HEALTH_EVERY_S = 0.5
MODELS_EVERY_S = 5.0
"""Adapters are loaded and unloaded while an engine runs."""
LEAVE_TIMEOUT_S = 2.0
BLOCK_SIZES_TRIED_MAX = 4
"""How often one run of an engine may correct its block size by its events."""


class Agent:
    """new_epoch: draws a random unsigned 63-bit number."""

    def __init__(
        self, settings: Settings, client: EngineClient, publisher: Publisher, clock: Clock, new_epoch: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._client = client
        self._publisher = publisher
        self._clock = clock
        self._new_epoch = new_epoch
        self._watch = EngineWatch()
        self._interval_s = settings.scrape_interval_ms / 1000
        self._follower: Follower | None = None
        self._fenced: dict[int, float] = {}  # rank -> process start of the run that it was found to have left
        self._epoch_owed = False  # its events began anew while it was gone
        self._block_sizes: set[int] = set()
        self._report_due = False
        self._in_tick = False  # the follow loop will look within TICK_S, and have the publisher woken
        self._arrived = Bell()
        self._to_publish = Bell()
        self._health_at = self._models_at = 0.0
        self._healthy = True
        self._said = ""
        self.record: WorkerRecord | None = None
        self.registered = asyncio.Event()
        """Set once the worker is in Redis."""

    # ------------------------------------------------------------------------------------------------------------- loops

    async def scrape_forever(self) -> None:
        while True:
            stop_if_cancelled()
            started = self._clock.now()
            await self._scrape()
            self._report_due = True
            if not self._in_tick:
                self._to_publish.ring()  # else it goes with what the tick brings: one write, one answer
            await asyncio.sleep(max(0.0, self._interval_s - (self._clock.now() - started)))

    async def follow_forever(self) -> None:
        while True:
            self._arrived.hush()
            self._follow()
            follower = self._follower
            more = follower is not None and follower.has_more
            if follower is not None and follower.blocks.changed:
                self._to_publish.ring()
                self._in_tick = True
                await asyncio.sleep(MORE_S if more else TICK_S)
                self._in_tick = False
                continue
            if self._report_due:
                self._to_publish.ring()
            if follower is not None:
                follower.on_arrival(self._arrived.ring)
            await self._arrived.wait(MORE_S if more else IDLE_S_MAX)

    async def publish_forever(self) -> None:
        report_at = 0.0
        while True:
            stop_if_cancelled()
            self._to_publish.hush()
            now = self._clock.now()
            due = self._report_due or now >= report_at
            self._report_due = False
            if not await self._publish(now, with_report=due):
                self._report_due |= due
                await asyncio.sleep(RETRY_S)
                continue
            if due:
                report_at = now + 1.5 * self._interval_s
                self.registered.set()
            await self._to_publish.wait(max(0.0, report_at - self._clock.now()))

    async def leave(self) -> None:
        """De-register, within a bound."""
        if self.record is not None:
            try:
                async with asyncio.timeout(LEAVE_TIMEOUT_S):
                    await self._publisher.leave(self._report(EngineState.LEAVING))
            except TimeoutError:
                log.warning("redis did not take the goodbye in time: the registration will expire")

    def close(self) -> None:
        if self._follower is not None:
            self._follower.close()

    # ------------------------------------------------------------------------------------------------------------ scrape

    async def _scrape(self) -> None:
        try:
            metrics = parse(await self._client.metrics())
            await self._check_health()
            await self._digest(metrics)
        except Refused as error:
            self._watch.gone()
            self._say(f"the engine cannot be reached: {error}")
        except Silent as error:
            await self._ask_health_only(str(error))
        except (EngineError, NotMetrics, BadAnswer, EventSourceError) as error:
            await self._ask_health_only(str(error))
        else:
            self._say("")

    async def _check_health(self) -> None:
        now = self._clock.now()
        if now >= self._health_at:
            try:
                self._healthy = await self._client.healthy()
            except Silent:
                pass  # its figures came: a saturated server, not a dead one
            self._health_at = now + HEALTH_EVERY_S

    async def _ask_health_only(self, why: str) -> None:
        self._say(f"the engine's figures cannot be read: {why}")
        try:
            self._watch.silent(healthy=await self._client.healthy())
        except EngineError:
            self._watch.gone()

    async def _digest(self, metrics: EngineMetrics) -> None:
        """Decide whether this is the engine that was known, then take its figures."""
        reason = self._watch.restart_reason(metrics)
        if self.record is None or self._follower is None:
            self._adopt(await identify(self._client, self._settings, metrics), metrics)
        elif reason:
            log.warning("the engine restarted", extra={"f": {"why": reason}})
            self._watch.gone()  # until it is known who it is now
            await self._replace_engine(metrics)
        else:
            self._fenced.clear()  # whatever began anew, it was not this process
            if self._epoch_owed:
                self._begin_epoch()
            if self._clock.now() >= self._models_at:
                await self._refresh_models()
        if self._watch.answered(metrics, self._clock.now(), healthy=self._healthy) and self._follower is not None:
            self._follower.emptied()

    def _say(self, trouble: str) -> None:
        """Log a change of state once."""
        if trouble != self._said:
            if trouble and not self._said:
                log.warning(trouble)
            elif not trouble:
                log.info("the engine answers")
            self._said = trouble and "trouble"

    # ------------------------------------------------------------------------------------------------------------ epochs

    def _adopt(self, identity: EngineIdentity, metrics: EngineMetrics, *, block_size: int = 0) -> None:
        """Follow this engine from now on, in a new epoch."""
        virgin = not block_size and metrics.prompt_tokens == 0 and metrics.generation_tokens == 0
        follower = Follower(identity, block_size or identity.block_size, self._clock, virgin=virgin)
        self.close()
        self._follower = follower
        self._arrived.ring()
        self._fenced.clear()
        self._models_at = self._clock.now() + MODELS_EVERY_S
        self._begin_epoch()
        fields = {"model": identity.base.name, "version": identity.version, "block_size": follower.block_size}
        log.info("engine found", extra={"f": {**fields, "blocks": identity.cache_blocks, "kv_events": len(identity.endpoints)}})
        if not identity.sends_kv_events:
            log.warning("the engine sends no KV events: routers can only guess what it caches")

    async def _replace_engine(self, metrics: EngineMetrics) -> None:
        identity = await identify(self._client, self._settings, metrics)
        assert self._follower is not None
        self._block_sizes.clear()
        if replace(identity, version="") != replace(self._follower.identity, version=""):
            self._adopt(identity, metrics)
            return
        self._follower.identity = identity
        old_start = self._watch.process_start_s
        unfenced = tuple(rank for rank in self._follower.ranks if not old_start or self._fenced.get(rank) != old_start)
        self._follower.restart(unfenced)
        self._epoch_owed = True
        self._follow()
        if self._epoch_owed:
            self._begin_epoch()

    async def _refresh_models(self) -> None:
        assert self._follower is not None
        self._models_at = self._clock.now() + MODELS_EVERY_S
        models = parse_models(await self._client.models())
        if models != self._follower.identity.models:
            log.info("the engine serves other models now", extra={"f": {"models": ",".join(card.name for card in models)}})
            self._follower.identity = replace(self._follower.identity, models=models)
            self._renew_record()

    def _begin_epoch(self) -> None:
        self._epoch_owed = False
        self._publisher.begin(self._new_epoch())
        self._renew_record()

    def _renew_record(self) -> None:
        assert self._follower is not None
        self.record = record_of(
            self._follower.identity, self._settings, self._publisher.deltas.epoch, self._follower.block_size
        )
        self._report_soon()  # readers act on deltas of an epoch only once they know its record

    # ------------------------------------------------------------------------------------------------------------ follow

    def _follow(self) -> None:
        """Apply what the engine published.

        A restarted engine's events come seconds before its figures do. Nobody is sent there meanwhile, and what it held is
        taken back block by block: the one epoch of the new run begins with the figures, which say who it is.
        """
        if self._follower is None:
            return
        fresh = self._follower.poll()
        if fresh:
            log.warning("the engine's events began anew", extra={"f": {"ranks": sorted(fresh)}})
            self._fenced.update(dict.fromkeys(fresh, self._watch.process_start_s))
            if self._watch.was_gone:
                self._epoch_owed = True
            else:
                self._begin_epoch()
        self._correct_block_size()

    def _correct_block_size(self) -> None:
        """Events say how many tokens a block has; where the metrics said otherwise, the events are right."""
        assert self._follower is not None
        found = self._follower.blocks.foreign_block_size
        metrics = self._watch.metrics
        if not found or metrics is None or found in self._block_sizes or len(self._block_sizes) >= BLOCK_SIZES_TRIED_MAX:
            return
        log.warning("block size corrected", extra={"f": {"metrics": self._follower.block_size, "events": found}})
        self._block_sizes |= {found, self._follower.block_size}
        self._adopt(self._follower.identity, metrics, block_size=found)

    # ----------------------------------------------------------------------------------------------------------- publish

    def _report_soon(self) -> None:
        self._report_due = True
        self._to_publish.ring()

    async def _publish(self, now: float, *, with_report: bool) -> bool:
        if self.record is None or self._follower is None:
            return False
        blocks = self._follower.blocks if self._follower.identity.sends_kv_events else None
        report = self._report(self._watch.state) if with_report else None
        return await self._publisher.publish(now, self.record, report, blocks)

    def _report(self, state: EngineState) -> EngineReport:
        assert self.record is not None
        metrics = self._watch.metrics
        figures: dict[str, Any] = (
            {}
            if metrics is None
            else {
                "running": metrics.running,
                "waiting": metrics.waiting,
                "generation_tokens": metrics.generation_tokens,
                "prompt_tokens": metrics.prompt_tokens,
                "prefix_query_tokens": metrics.prefix_query_tokens,
                "prefix_hit_tokens": metrics.prefix_hit_tokens,
                "preemptions": metrics.preemptions,
            }
        )
        return EngineReport(
            worker=self.record.worker,
            epoch=self.record.epoch,
            sequence=0,  # the publisher numbers
            state=state,
            scrape_age_s=self._clock.now() - self._watch.at if metrics is not None else 0.0,
            kv_usage=metrics.kv_usage if metrics is not None else 0.0,
            ranks=metrics.by_rank if metrics is not None else (),
            blocks_exact=self._follower is None or self._follower.exact,
            **figures,
        )

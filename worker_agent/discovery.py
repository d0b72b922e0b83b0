"""Asks an engine who it is, and makes the record that is registered."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from contract.keyspace import ModelCard, WorkerRecord
from worker_agent.engine_client import EngineClient
from worker_agent.engine_info import (
    RANKS_MAX,
    BadAnswer,
    EventEndpoint,
    base_model,
    configured_sources,
    parse_models,
    parse_sources,
    parse_version,
)
from worker_agent.engine_metrics import EngineMetrics
from worker_agent.settings import AUTO, OFF, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What stays the same while an engine runs, except for adapters that come and go in `models`."""

    models: tuple[ModelCard, ...]
    version: str
    block_size: int
    cache_blocks: int
    ranks: int
    prefix_caching: bool
    endpoints: tuple[EventEndpoint, ...]
    named_ranks: int = 0  # as in WorkerRecord

    @property
    def base(self) -> ModelCard:
        return base_model(self.models)

    @property
    def cache_blocks_per_rank(self) -> int:
        return -(-self.cache_blocks // self.ranks)

    @property
    def sends_kv_events(self) -> bool:
        # Without prefix caching the engine never reuses a block: that is an exact, empty set, and needs no events.
        return bool(self.endpoints) or not self.prefix_caching


async def identify(client: EngineClient, settings: Settings, metrics: EngineMetrics) -> EngineIdentity:
    """EngineError: no answer. BadAnswer: something that is not a vLLM."""
    models = parse_models(await client.models())
    version = parse_version(await client.version())
    endpoints = await _endpoints(client, settings, metrics.ranks) if metrics.cache.prefix_caching else ()
    return EngineIdentity(
        models=models,
        version=version,
        block_size=metrics.cache.block_size,
        cache_blocks=metrics.cache.blocks,
        ranks=max(metrics.ranks, len(endpoints)),
        prefix_caching=metrics.cache.prefix_caching,
        endpoints=endpoints,
        named_ranks=_named_ranks(metrics, endpoints),
    )


def _named_ranks(metrics: EngineMetrics, endpoints: tuple[EventEndpoint, ...]) -> int:
    """Its figures and its events number the ranks alike, from 0 on: as the header does."""
    ranks = len(metrics.by_rank)
    alike = not endpoints or sorted(endpoint.rank for endpoint in endpoints) == list(range(ranks))
    return ranks if 1 < ranks <= RANKS_MAX and alike else 0


async def _endpoints(client: EngineClient, settings: Settings, ranks: int) -> tuple[EventEndpoint, ...]:
    if settings.kv_events == OFF:
        return ()
    if settings.kv_events != AUTO:
        replay = settings.kv_replay if settings.kv_replay not in (AUTO, OFF) else ""
        return configured_sources(settings.kv_events, replay, ranks)
    body = await client.event_sources()
    try:
        found = parse_sources(body, settings.engine_url) if body else ()
    except BadAnswer as error:
        log.warning("the engine's KV event sources are not understood", extra={"f": {"error": error}})
        return ()
    if settings.kv_replay == AUTO:
        return found
    given = (
        configured_sources(found[0].publish, "" if settings.kv_replay == OFF else settings.kv_replay, len(found))
        if found
        else ()
    )
    return tuple(
        EventEndpoint(endpoint.rank, endpoint.publish, replay.replay, endpoint.topic)
        for endpoint, replay in zip(found, given, strict=True)
    )


def record_of(identity: EngineIdentity, settings: Settings, epoch: int, block_size: int) -> WorkerRecord:
    """The registration. block_size: the one in use, which events may have corrected."""
    return WorkerRecord(
        worker=settings.worker,
        url=settings.url,
        epoch=epoch,
        models=identity.models,
        block_size=block_size,
        cache_blocks=identity.cache_blocks,
        sends_kv_events=identity.sends_kv_events,
        tokenizer=settings.tokenizer or identity.base.root,
        engine_version=identity.version,
        accelerator=settings.accelerator,
        data_parallel_size=identity.ranks,
        ttl_ms=settings.ttl_ms,
        named_ranks=identity.named_ranks,
    )

"""The loops: outcomes in, samples to disk, models judged by what came, trainings when due, Redis kept current."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import redis.asyncio
from redis.exceptions import RedisError

from prediction.errors import DatasetError
from runtime.clock import Clock
from runtime.tasks import in_thread, stop_if_cancelled
from trainer import consumer
from trainer.lifecycle import Lifecycle
from trainer.mirror import Mirror
from trainer.registry import RegistryError
from trainer.sample_log import SampleLog
from trainer.schedule import Schedule
from trainer.train import TrainError
from trainer.workshop import Busy, Order, Workshop
from trainer.zoo.kind import TrainingStopped

log = logging.getLogger(__name__)

BACKOFF_S = 0.5
LOOK_S = 1.0
"""Between two looks at what is due, and at what Redis says of the models."""


class Follow:
    def __init__(
        self,
        *,
        client: redis.asyncio.Redis,
        samples: SampleLog,
        lifecycle: Lifecycle,
        workshop: Workshop,
        schedule: Schedule,
        mirror: Mirror,
        lock: asyncio.Lock,
        clock: Clock,
        kind: str,
        flush_s: float,
    ) -> None:
        self._client = client
        self._samples = samples
        self._lifecycle = lifecycle
        self._workshop = workshop
        self._schedule = schedule
        self._mirror = mirror
        self._lock = lock
        self._clock = clock
        self._kind = kind
        self._flush_s = flush_s
        self._flushed_at = clock.now()
        self.connected = False
        self.outcomes = 0
        self.taken = len(samples)
        """Samples, those found on disk at the start included."""
        self.unreadable = 0

    async def consume(self) -> None:
        """Until cancelled. OSError: the disk refuses, which ends the process: samples must not pass unseen."""
        while True:
            stop_if_cancelled()
            try:
                got = await consumer.read(self._client, self._samples.position)
            except (RedisError, OSError) as error:
                if self.connected:
                    log.warning("no outcomes: Redis does not answer", extra={"f": {"error": error}})
                self.connected = False
                await asyncio.sleep(BACKOFF_S)
                continue
            self.connected = True
            await self._take(got)

    async def _take(self, got: consumer.Read) -> None:
        self.outcomes += len(got.outcomes) + got.unreadable
        self.unreadable += got.unreadable
        async with self._lock:
            if got.position:
                fresh = self._samples.take(got.outcomes, got.position)
                self.taken += len(fresh)
                if fresh:
                    rows = np.array([outcome.features for outcome in fresh], dtype=np.float64)
                    ttft_s = np.array([outcome.ttft_s for outcome in fresh])
                    for sentence in self._lifecycle.observe(rows, ttft_s, now_unix=self._clock.unix()):
                        log.info("models: %s", sentence)
            if self._samples.pending and self._clock.now() - self._flushed_at >= self._flush_s:
                self._flushed_at = self._clock.now()
                await in_thread(self._samples.flush)

    async def keep_training(self) -> None:
        """Until cancelled."""
        while True:
            stop_if_cancelled()
            await asyncio.sleep(LOOK_S)
            why = self._schedule.due(
                self._clock.now(),
                samples=len(self._samples),
                taken=self.taken,
                drifted=self._lifecycle.drifted().good,
            )
            if why and not self._workshop.busy:
                await self._train(why)

    async def _train(self, why: str) -> None:
        log.info("training", extra={"f": {"why": why, "samples": len(self._samples)}})
        try:
            await self._workshop.train(Order(self._kind, why), lambda _stage, _done, _message: None)
        except (TrainError, DatasetError) as error:
            log.warning("not trained", extra={"f": {"why": error}})
        except OSError as error:
            log.error("not trained: the disk refuses", extra={"f": {"error": error}})
        except (Busy, TrainingStopped):
            pass
        self._schedule.trained(self._clock.now(), taken=self.taken)

    async def keep_mirrored(self) -> None:
        """Until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                async with self._lock:
                    await self._mirror.sync()
            except (RedisError, OSError, RegistryError) as error:
                log.debug("models not mirrored", extra={"f": {"error": error}})
            await asyncio.sleep(LOOK_S)

"""One training at a time, in a thread: samples from the log or a file, through the zoo, to the lifecycle."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prediction import dataset
from prediction.dataset import Dataset, DatasetError
from runtime.clock import Clock
from runtime.tasks import in_thread
from trainer.lifecycle import Lifecycle
from trainer.rules import Verdict
from trainer.sample_log import SampleLog
from trainer.train import Tell, Trained, TrainError, train
from trainer.zoo.kind import TrainingStopped

log = logging.getLogger(__name__)

NICE = 10
"""A training gives way to the processes whose requests it learns from."""


class Busy(Exception):
    """A training is running already."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to train. dataset: a path, "" for the outcome log; why: goes into the model's note."""

    kind: str
    why: str
    dataset: str = ""
    samples_max: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    trained: Trained
    verdict: Verdict


class Workshop:
    """lock: held while models change hands, by whoever changes them."""

    def __init__(
        self, samples: SampleLog, lifecycle: Lifecycle, lock: asyncio.Lock, clock: Clock, *, samples_max: int, seed: int
    ) -> None:
        self._samples = samples
        self._lifecycle = lifecycle
        self._lock = lock
        self._clock = clock
        self._samples_max = samples_max
        self._seed = seed
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")
        self.busy = False
        self.trainings = 0
        self.failures = 0
        self.last_s = 0.0

    def stop(self) -> None:
        """A training that is running ends at its next sign of progress."""
        self._stopping.set()

    async def train(self, order: Order, tell: Tell) -> Result:
        """tell: called on the loop. Busy. TrainError, DatasetError: nothing to train on. TrainingStopped. OSError: the disk."""
        if self.busy:
            raise Busy
        self.busy = True
        began = self._clock.now()
        try:
            loop = asyncio.get_running_loop()

            def pass_on(stage: str, done: float, message: str) -> None:
                if self._stopping.is_set():
                    raise TrainingStopped
                loop.call_soon_threadsafe(tell, stage, done, message)

            async with self._lock:
                source = None if order.dataset else await in_thread(self._samples.dataset, self._limit(order))
            trained = await loop.run_in_executor(self._thread, self._train, order, source, pass_on)
            async with self._lock:
                verdict = await in_thread(self._lifecycle.submit, trained, now_unix=self._clock.unix())
        except (TrainError, DatasetError, OSError):
            self.failures += 1
            raise
        finally:
            self.busy = False
            self.last_s = self._clock.now() - began
        self.trainings += 1
        manifest = trained.bundle.manifest
        log.info(
            "trained",
            extra={"f": {"model": manifest.model_id, "samples": manifest.samples, "passed": verdict.good, "why": verdict.why}},
        )
        return Result(trained, verdict)

    def _limit(self, order: Order) -> int:
        return order.samples_max or self._samples_max

    def _train(self, order: Order, source: Dataset | None, tell: Callable[[str, float, str], None]) -> Trained:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of this thread, and of those that LightGBM starts
        tell("read", 0.0, order.dataset or "the outcome log")
        samples = dataset.read(order.dataset) if source is None else source
        now_unix = self._clock.unix()
        return train(
            samples,
            kind=order.kind,
            model_id=model_id(order.kind, now_unix),
            seed=order.seed or self._seed,
            now_unix=now_unix,
            tell=tell,
            note=order.why,
        )


def model_id(kind: str, now_unix: float) -> str:
    """Unique by the millisecond, sorted by time within a kind."""
    return f"{kind.replace('_', '-')}-{int(now_unix * 1000):x}"

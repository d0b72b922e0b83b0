"""The Trainer service: what a person or a program may ask of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from prediction import dataset
from prediction.errors import DatasetError
from proto import trainer_pb2, trainer_pb2_grpc
from runtime.clock import Clock
from runtime.tasks import in_thread
from trainer import wire
from trainer.lifecycle import Lifecycle, RefusedError
from trainer.registry import RegistryError
from trainer.sample_log import SampleLog
from trainer.train import TrainError
from trainer.workshop import Busy, Order, Result, Workshop
from trainer.zoo import KINDS
from trainer.zoo.kind import TrainingStopped

HISTORY_SHOWN = 50
NAME_CHARS_MAX = 128
"""Of what a caller names, in what it is told: a status longer than a few KB ends the call without a word."""
NAMES_SHOWN = 10
SEEDS = 1 << 31
"""What libraries of learning take; others are folded into it."""
_PROGRESS_MAX = 1_000


class TrainerServicer(trainer_pb2_grpc.TrainerServicer):
    def __init__(
        self,
        *,
        samples: SampleLog,
        lifecycle: Lifecycle,
        workshop: Workshop,
        lock: asyncio.Lock,
        clock: Clock,
        kind: str,
        samples_max: int,
    ) -> None:
        self._samples = samples
        self._lifecycle = lifecycle
        self._workshop = workshop
        self._lock = lock
        self._clock = clock
        self._kind = kind
        self._samples_max = samples_max
        self._trainings: set[asyncio.Task[Result]] = set()

    async def Train(  # noqa: N802 - the name in the .proto
        self, request: trainer_pb2.TrainRequest, context: Any
    ) -> AsyncIterator[trainer_pb2.TrainProgress]:
        """A caller that leaves does not end the training."""
        kind = request.kind or self._kind
        if kind not in KINDS:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"no kind {kind!r}; there are {', '.join(KINDS)}")
        said: asyncio.Queue[trainer_pb2.TrainProgress] = asyncio.Queue(_PROGRESS_MAX)

        def tell(stage: str, done: float, message: str) -> None:
            with contextlib.suppress(asyncio.QueueFull):  # a slow reader misses steps, not the end
                said.put_nowait(trainer_pb2.TrainProgress(stage=stage, done=done, message=message))

        order = Order(kind, "asked for", request.dataset, int(request.samples_max), int(request.seed) % SEEDS)
        task = asyncio.create_task(self._workshop.train(order, tell))
        self._trainings.add(task)
        task.add_done_callback(self._ended)
        async for progress in _until_done(task, said):
            yield progress
        try:
            result = await asyncio.shield(task)
        except Busy:
            await _refuse(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, "a training is running already; ask again when it is done"
            )
        except (TrainError, DatasetError) as error:
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except TrainingStopped:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, "the trainer is ending")
        except OSError as error:
            await _refuse(context, grpc.StatusCode.INTERNAL, f"the disk refuses: {error}")
        found = self._model(result.trained.bundle.manifest.model_id)
        word = "in shadow" if result.verdict.good else "rejected"
        yield trainer_pb2.TrainProgress(stage="done", done=1.0, message=f"{word}: {result.verdict.why}", model=found)

    async def ListModels(  # noqa: N802
        self, request: trainer_pb2.ListModelsRequest, context: Any
    ) -> trainer_pb2.ModelList:
        registry = self._lifecycle.registry
        models = [found for model_id in registry.ids() if (found := self._model(model_id)) is not None]
        events = [wire.event(event) for event in registry.state.history[-HISTORY_SHOWN:]]
        return trainer_pb2.ModelList(models=models, history=events, samples=len(self._samples))

    async def GetModel(self, request: trainer_pb2.GetModelRequest, context: Any) -> trainer_pb2.Model:  # noqa: N802
        return await self._found(request.model_id, context)

    async def Promote(self, request: trainer_pb2.PromoteRequest, context: Any) -> trainer_pb2.Model:  # noqa: N802
        async with self._lock:
            await self._found(request.model_id, context)
            try:
                self._lifecycle.promote(request.model_id, force=request.force, now_unix=self._clock.unix())
            except (RefusedError, RegistryError) as error:
                await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except OSError as error:
                await _refuse(context, grpc.StatusCode.INTERNAL, f"the disk refuses: {error}")
            return await self._found(request.model_id, context)

    async def Rollback(self, request: trainer_pb2.RollbackRequest, context: Any) -> trainer_pb2.Model:  # noqa: N802
        async with self._lock:
            try:
                model_id = self._lifecycle.rollback(now_unix=self._clock.unix())
            except RefusedError as error:
                await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except OSError as error:
                await _refuse(context, grpc.StatusCode.INTERNAL, f"the disk refuses: {error}")
            return await self._found(model_id, context)

    async def Evaluate(self, request: trainer_pb2.EvaluateRequest, context: Any) -> trainer_pb2.Evaluation:  # noqa: N802
        await self._found(request.model_id, context)
        try:
            read = await in_thread(dataset.read, request.dataset) if request.dataset else None
            async with self._lock:
                samples = read if read is not None else await in_thread(self._samples.dataset, self._samples_max)
                scores = await in_thread(self._lifecycle.evaluate, request.model_id, samples)
        except (DatasetError, RefusedError, RegistryError) as error:
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return wire.evaluation(scores)

    # ------------------------------------------------------------------------------------------------------------- inside

    def _model(self, model_id: str) -> trainer_pb2.Model | None:
        entry = self._lifecycle.entry(model_id)
        if entry is None:
            return None
        return wire.model(entry, self._lifecycle.registry.state.standing(model_id), self._lifecycle.live(model_id))

    async def _found(self, model_id: str, context: Any) -> trainer_pb2.Model:
        found = self._model(model_id)
        if found is None:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, f"no model {model_id[:NAME_CHARS_MAX]!r}{self._known()}")
        return found

    def _known(self) -> str:
        """Behind a name that is none: the latest models."""
        names = self._lifecycle.registry.ids()[-NAMES_SHOWN:]
        return f"; there are {', '.join(names)}" if names else ": none is there yet"

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._trainings.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have left: seen, so that nobody complains


async def _until_done(
    task: asyncio.Task[Result], said: asyncio.Queue[trainer_pb2.TrainProgress]
) -> AsyncIterator[trainer_pb2.TrainProgress]:
    """What is said until the task ends, and what is left then."""
    while not task.done():
        get = asyncio.create_task(said.get())
        await asyncio.wait({task, get}, return_when=asyncio.FIRST_COMPLETED)
        if get.done():
            yield get.result()
        else:
            get.cancel()
    while not said.empty():
        yield said.get_nowait()


async def _refuse(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort returned")

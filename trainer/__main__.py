"""python -m trainer: builds the parts, follows the outcomes until told to end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from proto import trainer_pb2, trainer_pb2_grpc
from runtime import admin, log, service, tls
from runtime.addresses import AddressError
from runtime.clock import SystemClock
from runtime.grpc_server import Server
from runtime.service import Life
from runtime.settings import fail, read
from trainer.durable import alone
from trainer.follow import Follow
from trainer.lifecycle import Lifecycle, Windows
from trainer.metrics import TrainerCollector, registry
from trainer.mirror import Mirror
from trainer.registry import Registry, RegistryError
from trainer.rules import Rules
from trainer.sample_log import SampleLog, SampleLogError
from trainer.schedule import Cadence, Schedule
from trainer.servicer import TrainerServicer
from trainer.settings import Settings
from trainer.workshop import Workshop

PROCESS = "trainer"
STOP_GRACE_S = 2.0
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
SERVICES = (trainer_pb2.DESCRIPTOR.services_by_name["Trainer"].full_name,)


async def serve(settings: Settings, life: Life) -> None:
    """Until `life` ends. AddressError; RegistryError, SampleLogError: the directory cannot be used."""
    clock = SystemClock()
    lock = asyncio.Lock()
    where = Path(settings.data_dir)
    try:
        held = alone(where)
    except OSError as error:
        fail(PROCESS, f"--data-dir: {where}: {error.strerror}" if error.strerror else f"--data-dir: {error}")
    samples = SampleLog(
        where / "samples",
        rng=np.random.default_rng(settings.seed),
        recent_max=settings.recent_max,
        kept_max=settings.kept_max,
    )
    models = Registry(where / "models", models_max=settings.models_max)
    lifecycle = Lifecycle(
        models,
        rules=Rules(
            watch_share_of_previous=settings.rollback_factor,
            drift_share_of_evaluation=settings.drift_factor,
        ),
        windows=Windows(shadow=settings.shadow_samples, watch=settings.watch_samples),
    )
    workshop = Workshop(samples, lifecycle, lock, clock, samples_max=settings.samples_max, seed=settings.seed)
    cadence = Cadence(settings.train_every_s, settings.train_pause_s, settings.samples_min, settings.new_samples_min)
    no_retry = Retry(NoBackoff(), 0)
    client = redis.asyncio.Redis.from_url(settings.bus_url, socket_timeout=5.0, socket_connect_timeout=2.0, retry=no_retry)
    mirrored = redis.asyncio.Redis.from_url(settings.bus_url, socket_timeout=5.0, socket_connect_timeout=2.0, retry=no_retry)
    follow = Follow(
        client=client,
        samples=samples,
        lifecycle=lifecycle,
        workshop=workshop,
        schedule=Schedule(cadence, clock.now(), trained_taken=0, ever=bool(models.ids())),
        mirror=Mirror(mirrored, models),
        lock=lock,
        clock=clock,
        kind=settings.kind,
        flush_s=settings.flush_s,
    )
    servicer = TrainerServicer(
        samples=samples,
        lifecycle=lifecycle,
        workshop=workshop,
        lock=lock,
        clock=clock,
        kind=settings.kind,
        samples_max=settings.samples_max,
    )

    http = None
    if settings.metrics_port:
        collector = TrainerCollector(follow=follow, samples=samples, lifecycle=lifecycle, workshop=workshop)
        http = await admin.start(
            settings.metrics_host,
            settings.metrics_port,
            registry(collector),
            lambda: "" if follow.connected else "Redis has not answered yet",
        )
    credentials = None
    if settings.tls_cert:
        credentials = tls.grpc_server_credentials(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def add(server: grpc.aio.Server) -> None:
        trainer_pb2_grpc.add_TrainerServicer_to_server(servicer, server)

    server = Server(add, SERVICES, credentials, message_bytes_max=MESSAGE_BYTES_MAX)
    await server.start(settings.listen)
    life.spawn(follow.consume(), name="outcomes")
    life.spawn(follow.keep_mirrored(), name="mirror")
    life.spawn(follow.keep_training(), name="trainings")
    life.ready(f"gRPC on {', '.join(server.addresses)}, {len(samples)} samples, {len(models.ids())} models")

    await life.ending.wait()
    workshop.stop()
    await server.stop(grace_s=STOP_GRACE_S)
    await life.cancel_all()
    async with lock:
        samples.flush()
    if http is not None:
        await http.cleanup()
    await client.aclose()
    await mirrored.aclose()
    held.close()


def main() -> None:
    settings = read(Settings, PROCESS)
    log.configure(PROCESS, level=settings.log_level, format=settings.log_format)

    async def body(life: Life) -> None:
        try:
            await serve(settings, life)
        except (AddressError, SampleLogError) as error:
            fail(PROCESS, error.strerror or str(error))
        except (tls.TlsError, RegistryError) as error:
            fail(PROCESS, str(error))

    service.run(body, PROCESS)


if __name__ == "__main__":
    main()

"""`python -m emulator`: one emulated vLLM server."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from aiohttp import web

from contract.tokens import TokenizerUnavailable
from emulator import server
from emulator.app import App
from emulator.driver import Driver
from emulator.engine import Engine, EngineConfig
from emulator.kv_events import BUFFER_STEPS, TOPIC, EventEncoder, ReplayBuffer
from emulator.metrics import EngineMetrics
from emulator.presets import PRESETS, Preset
from emulator.publisher import HIGH_WATER_MARK, Publisher
from emulator.settings import Settings
from emulator.texts import Texts
from runtime import log as logs
from runtime import service
from runtime.clock import SystemClock
from runtime.settings import fail, read

PROCESS = "emulator"

log = logging.getLogger(__name__)


def engine_config(settings: Settings, preset: Preset) -> EngineConfig:
    """ValueError: sizes that do not fit together."""
    num_blocks = settings.num_blocks or preset.num_blocks
    capacity = (num_blocks - 1) * preset.block_size
    return EngineConfig(
        block_size=preset.block_size,
        num_blocks=num_blocks,
        max_num_seqs=settings.max_num_seqs or preset.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens or preset.max_num_batched_tokens,
        # A context is never longer than the cache: vLLM refuses to start with more, and shortens what it chose by itself.
        max_model_len=settings.max_model_len or min(preset.max_model_len, capacity),
        caching=settings.prefix_caching,
        answer_tokens_mean=settings.answer_tokens_mean,
        hash_seed=settings.hash_seed or int.from_bytes(os.urandom(8), "little"),
    )


def main(settings: Settings) -> None:
    """Build everything, then live until told to end."""
    preset = PRESETS[settings.preset]
    try:
        texts = Texts(settings.tokenizer)
        config = engine_config(settings, preset)
    except (TokenizerUnavailable, ValueError) as error:
        fail(PROCESS, str(error))
    # The first chat would otherwise pay for the template engine.
    texts.warm_up()
    engine = Engine(config, preset.latency(settings.latency), texts.vocabulary, text_seed=settings.seed)
    engine.slowdown = 1.0 / settings.speed
    loras = {name: path or name for name, _, path in (entry.partition("=") for entry in settings.lora)}
    clock = SystemClock()
    model = settings.model or preset.model
    metrics = EngineMetrics(config, model=model, created_unix=clock.unix(), max_loras=len(loras))

    async def live(life: service.Life) -> None:
        publisher = None if settings.kv_events_port == -1 else _publisher(settings, config, list(loras))
        driver = Driver(engine, metrics, publisher, clock)
        app = App(
            model=model,
            loras=loras,
            driver=driver,
            texts=texts,
            created=int(time.time()),
            max_queued_requests=settings.max_num_queued_reqs,
            max_queued_tokens=settings.max_num_queued_tokens,
        )
        if publisher is not None:
            publisher.open()
            app.kv_sources = {"0": kv_source(publisher)}
            life.spawn(publisher.serve_replays(), name="kv replays")
        life.spawn(driver.run(), name="engine")
        runner = server.runner(server.build(app, with_faults=settings.faults))
        await runner.setup()
        try:
            site = web.TCPSite(runner, settings.host, settings.port, backlog=4_096)
            await site.start()
            life.ready(f"http://{settings.host}:{runner.addresses[0][1]} serves {model} as {settings.preset}")
            await life.ending.wait()
            await _end(app, settings.shutdown_timeout)
        finally:
            await runner.cleanup()
            if publisher is not None:
                publisher.close()

    service.run(live, PROCESS)


def _publisher(settings: Settings, config: EngineConfig, loras: list[str]) -> Publisher:
    ids = {name: number for number, name in enumerate(loras, start=1)}
    return Publisher(
        EventEncoder(block_size=config.block_size, format=settings.kv_events_format, loras=ids),
        host=settings.host,
        port=settings.kv_events_port,
        replay_port=settings.kv_replay_port,
        buffer=ReplayBuffer(),
    )


def kv_source(publisher: Publisher) -> dict[str, object]:
    """One rank's entry of /kv_event_sources."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": publisher.endpoint,
        "replay_endpoint": publisher.replay_endpoint,
        "buffer_steps": BUFFER_STEPS,
        "hwm": HIGH_WATER_MARK,
        "max_queue_size": HIGH_WATER_MARK,
        "topic": TOPIC,
    }


async def _end(app: App, timeout_s: float) -> None:
    """Let running requests end within the time given, then end them with `abort`."""
    app.is_draining = True
    deadline = time.monotonic() + timeout_s
    while not app.driver.is_idle and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    app.driver.abort_all()
    # One turn of the loop for the handlers to write the ends of their bodies.
    await asyncio.sleep(0.01)


if __name__ == "__main__":
    chosen = read(Settings, PROCESS)
    logs.configure(PROCESS, level=chosen.log_level, format=chosen.log_format)
    main(chosen)

"""`python -m emulator`: one emulated vLLM server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

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
from emulator.ranks import Ranks
from emulator.settings import Settings
from emulator.texts import Texts
from runtime import log as logs
from runtime import service
from runtime.clock import Clock, SystemClock
from runtime.settings import fail, read

PROCESS = "emulator"


class Emulator:
    """Everything of one server, built from its settings."""

    def __init__(self, settings: Settings, texts: Texts, clock: Clock) -> None:
        """ValueError: sizes that do not fit together."""
        preset = PRESETS[settings.preset]
        config = engine_config(settings, preset)
        model = settings.model or preset.model
        loras = {name: path or name for name, _, path in (entry.partition("=") for entry in settings.lora)}
        self._settings = settings
        self._publishers: list[Publisher] = []
        drivers = []
        ranks = settings.data_parallel_size
        for rank in range(ranks):
            engine = Engine(config, preset.latency(settings.latency), texts.vocabulary, text_seed=settings.seed)
            engine.slowdown = 1.0 / settings.speed
            metrics = EngineMetrics(
                config, model=model, created_unix=clock.unix(), max_loras=len(loras), rank=rank, ranks=ranks
            )
            publisher = None if settings.kv_events_port == -1 else _publisher(settings, config, list(loras), rank)
            if publisher is not None:
                self._publishers.append(publisher)
            drivers.append(Driver(engine, metrics, publisher, clock))
        self.app = App(
            model=model,
            loras=loras,
            ranks=Ranks(drivers),
            texts=texts,
            created=int(clock.unix()),
            max_queued_requests=settings.max_num_queued_reqs,
            max_queued_tokens=settings.max_num_queued_tokens,
        )
        self._runner = server.runner(server.build(self.app, with_faults=settings.faults))

    @property
    def url(self) -> str:
        """Where it listens, once started."""
        return f"http://{self._settings.host}:{self._runner.addresses[0][1]}"

    def state(self) -> dict[str, object]:
        """What there is to tell where requests wait here (runtime.telling)."""
        return {"inside": self.app.num_inside, "ranks": [driver.state() for driver in self.app.ranks.drivers]}

    async def start(self, spawn: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        """Bind and serve. spawn: starts a task that lives until `stop`. OSError: a port is taken."""
        for publisher in self._publishers:
            publisher.open()
            spawn(publisher.serve_replays(), "kv replays")
        self.app.kv_sources = {str(rank): kv_source(publisher) for rank, publisher in enumerate(self._publishers)}
        for driver in self.app.ranks.drivers:
            spawn(driver.run(), "engine")
        await self._runner.setup()
        await web.TCPSite(self._runner, self._settings.host, self._settings.port, backlog=4_096).start()

    async def end_requests(self) -> None:
        """Let running requests end within the time that the settings give, then end them with `abort`."""
        self.app.is_draining = True
        drivers = self.app.ranks.drivers
        if self._settings.shutdown_timeout > 0:
            await asyncio.gather(*(driver.wait_idle(self._settings.shutdown_timeout) for driver in drivers))
        for driver in drivers:
            driver.abort_all()
        # A turn of the loop for the handlers to write the ends of their bodies.
        await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Close every socket."""
        await self._runner.cleanup()
        for publisher in self._publishers:
            publisher.close()


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
        max_model_len=settings.max_model_len or max(1, min(preset.max_model_len, capacity)),
        caching=settings.prefix_caching,
        answer_tokens_mean=settings.answer_tokens_mean,
        hash_seed=settings.hash_seed or int.from_bytes(os.urandom(8), "little"),
    )


def _publisher(settings: Settings, config: EngineConfig, loras: list[str], rank: int) -> Publisher:
    return Publisher(
        EventEncoder(block_size=config.block_size, format=settings.kv_events_format, loras=loras, rank=rank),
        host=settings.host,
        port=settings.kv_events_port and settings.kv_events_port + rank,
        replay_port=settings.kv_replay_port and settings.kv_replay_port + rank,
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


def main(settings: Settings) -> None:
    """Build everything, then live until told to end."""
    try:
        texts = Texts(settings.tokenizer)
        engine_config(settings, PRESETS[settings.preset])
    except (TokenizerUnavailable, ValueError) as error:
        fail(PROCESS, str(error))
    # The first chat would otherwise pay for the template engine.
    texts.warm_up()

    async def live(life: service.Life) -> None:
        emulator = Emulator(settings, texts, SystemClock())
        life.tells["engine"] = emulator.state
        try:
            await emulator.start(lambda coroutine, name: life.spawn(coroutine, name=name))
            life.ready(f"{emulator.url} serves {emulator.app.model} as {settings.preset}")
            await life.ending.wait()
            await emulator.end_requests()
        finally:
            await emulator.stop()

    service.run(live, PROCESS)


if __name__ == "__main__":
    chosen = read(Settings, PROCESS)
    logs.configure(PROCESS, level=chosen.log_level, format=chosen.log_format)
    main(chosen)

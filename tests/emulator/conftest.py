"""One emulated server on a free port of this process, with everything real but the GPU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from contract.tokens import BUILTIN
from emulator.__main__ import Emulator
from emulator.settings import Settings
from emulator.texts import Texts
from runtime.clock import SystemClock

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "vllm"

Launch = Callable[..., Awaitable[Emulator]]


@pytest.fixture(scope="session")
def texts() -> Texts:
    texts = Texts(BUILTIN)
    texts.warm_up()
    return texts


@pytest.fixture
async def launch(texts: Texts) -> AsyncIterator[Launch]:
    """Starts servers with the settings given; all of them are stopped at the end."""
    started: list[Emulator] = []
    tasks: list[asyncio.Task[None]] = []

    async def start(**settings: Any) -> Emulator:
        chosen = Settings(**{"port": 0, "faults": True, "lora": ("sql=models/tiny-lora-sql",), "speed": 4.0} | settings)
        chosen.check()
        emulator = Emulator(chosen, texts, SystemClock())
        await emulator.start(lambda coroutine, name: tasks.append(asyncio.create_task(coroutine, name=name)))
        started.append(emulator)
        return emulator

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for emulator in started:
        await emulator.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session

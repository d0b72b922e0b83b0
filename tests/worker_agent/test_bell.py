"""Waiting with a bound: what rings is heard, and a cancellation is never lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.waiting import turns
from worker_agent.bell import Bell

LONG_S = 60.0


async def test_what_rang_before_is_heard_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert await bell.wait(LONG_S)
    assert not await bell.wait(0.0)


async def test_what_was_hushed_is_not_heard() -> None:
    bell = Bell()
    bell.ring()
    bell.hush()
    assert not await bell.wait(0.0)


async def test_whoever_waits_is_woken_and_hears_it_once() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(LONG_S))
    await turns(3)
    bell.ring()
    bell.ring()
    assert await waiting
    assert not await bell.wait(0.0)


async def test_the_wait_ends_by_itself() -> None:
    bell = Bell()
    assert not await bell.wait(0.001)
    bell.ring()
    assert await bell.wait(LONG_S)


async def test_a_cancellation_in_the_moment_of_the_ring_is_not_lost() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(LONG_S))
    await turns(3)
    bell.ring()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    bell.ring()
    assert await bell.wait(LONG_S)

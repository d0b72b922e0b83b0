"""Data planes in processes of their own."""

from __future__ import annotations

import asyncio

START_S_MAX = 30.0


async def until_ready(process: asyncio.subprocess.Process, processes: int) -> None:
    """Returns once all of its processes have said on standard error, which is a pipe, that they are ready."""
    assert process.stderr is not None
    ready = 0
    async with asyncio.timeout(START_S_MAX):
        while ready < processes:
            line = await process.stderr.readline()
            assert line, "the data plane ended at start"
            ready += b"ready: http" in line and (processes == 1 or b"dataplane/" in line)

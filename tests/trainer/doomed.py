"""A trainer that is killed by SIGKILL at a step of its own: python -m tests.trainer.doomed STEP NUMBER trainer's flags...

STEP is a name of STEPS, or "any"; it dies right before the NUMBER-th of that name (from 1), of a write in the middle.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import redis.asyncio

from contract import keyspace
from trainer import __main__ as trainer
from trainer.durable import TEMPORARY, Disk

STEPS = (
    "write segment",
    "rename segment",
    "write model",
    "write manifest",
    "rename model",
    "sync directory",
    "write state",
    "rename state",
    "set model",
    "set state",
    "delete model",
    "write reservoir",
    "rename reservoir",
    "remove segment",
)
"""In the order in which a life comes to them."""


class Doom:
    def __init__(self, step: str, number: int) -> None:
        self._step = step
        self._left = number

    def near(self, step: str) -> bool:
        """Whether this is the one."""
        if self._step in (step, "any"):
            self._left -= 1
        return self._left == 0

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def thing(path: Path) -> str:
    """What a path of the trainer's directory is of."""
    name = path.name.removeprefix(TEMPORARY)
    for beginning, word in (
        ("seg-", "segment"),
        ("kept-", "reservoir"),
        ("state.json", "state"),
        ("manifest.json", "manifest"),
    ):
        if name.startswith(beginning):
            return word
    return "model"


def arm(doom: Doom) -> None:
    """Every operation of the disk, and of the mirror on Redis, asks first."""
    write, rename, remove, sync = Disk.write, Disk.rename, Disk.remove, Disk.sync_directory
    put, delete = redis.asyncio.Redis.set, redis.asyncio.Redis.delete

    def doomed_write(self: Disk, path: Path, data: bytes) -> None:
        if doom.near(f"write {thing(path)}"):
            with path.open("wb") as half:
                half.write(data[: len(data) // 2])
            doom.strike()
        write(self, path, data)

    def doomed_rename(self: Disk, source: Path, target: Path) -> None:
        if doom.near(f"rename {thing(target)}"):
            doom.strike()
        rename(self, source, target)

    def doomed_remove(self: Disk, path: Path) -> None:
        if doom.near(f"remove {thing(path)}"):
            doom.strike()
        remove(self, path)

    def doomed_sync(self: Disk, path: Path) -> None:
        if doom.near("sync directory"):
            doom.strike()
        sync(self, path)

    async def doomed_set(self: Any, key: Any, *rest: Any, **options: Any) -> Any:
        if doom.near("set state" if key == keyspace.MODELS_STATE else "set model"):
            doom.strike()
        return await put(self, key, *rest, **options)

    async def doomed_delete(self: Any, *keys: Any) -> Any:
        if doom.near("delete model"):
            doom.strike()
        return await delete(self, *keys)

    Disk.write, Disk.rename, Disk.remove, Disk.sync_directory = (  # type: ignore[method-assign]
        doomed_write,
        doomed_rename,
        doomed_remove,
        doomed_sync,
    )
    redis.asyncio.Redis.set, redis.asyncio.Redis.delete = doomed_set, doomed_delete  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(Doom(sys.argv[1], int(sys.argv[2])))
    sys.argv[1:3] = []
    trainer.main()

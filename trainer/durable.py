"""Files that are whole or not there: written under another name, made durable, renamed; directories likewise.

Every step that a crash may fall between goes through `Disk`, so that tests can stop at each of them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""What the names of unfinished things begin with; `sweep` removes them."""


LOCK_FILE = ".lock"


class Disk:
    """The few operations that matter to durability."""

    def write(self, path: Path, data: bytes) -> None:
        """Creates or replaces, and makes the bytes durable; the name is not yet."""
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            self.sync_file(file.fileno())

    def sync_file(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """After it, and after a crash at any point of it, `path` holds either what it held or all of `data`. OSError."""
    temporary = path.with_name(TEMPORARY + path.name)
    disk.write(temporary, data)
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)


def make_directory(disk: Disk, path: Path, files: Mapping[str, bytes]) -> None:
    """A new directory with these files, there whole or not at all. OSError: also where it is there already."""
    temporary = path.with_name(TEMPORARY + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name, data in files.items():
        disk.write(temporary / name, data)
    disk.sync_directory(temporary)
    disk.rename(temporary, path)
    disk.sync_directory(path.parent)


def remove_directory(disk: Disk, path: Path) -> None:
    """Gone at once under its name; a crash leaves at most something to sweep. OSError."""
    doomed = path.with_name(TEMPORARY + "gone-" + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    disk.rename(path, doomed)
    disk.sync_directory(path.parent)
    shutil.rmtree(doomed, ignore_errors=True)


class TakenError(OSError):
    """Another process uses the directory."""


def alone(directory: Path) -> IO[bytes]:
    """Makes the directory and holds it until what is returned is closed, or this process ends. TakenError. OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / LOCK_FILE).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TakenError(f"{directory}: another trainer uses it") from None
    return file


def sweep(directory: Path) -> None:
    """Removes what a crash left unfinished."""
    for path in directory.glob(TEMPORARY + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

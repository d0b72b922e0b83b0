"""Files that somebody else replaces: keys, certificates."""

from __future__ import annotations

import os


class Changes:
    """Whether any of the files is another one than when it was last asked, or at the start. "" names none."""

    def __init__(self, *paths: str) -> None:
        self._paths = [path for path in paths if path]
        self._stamps = self._read()

    def __call__(self) -> bool:
        found = self._read()
        if found == self._stamps:
            return False
        self._stamps = found
        return True

    def _read(self) -> list[tuple[int, int, int]]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, int, int]:
    """Time, size and number; zeros while there is none. Links are followed: Kubernetes replaces a link."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)

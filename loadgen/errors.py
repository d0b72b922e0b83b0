"""What can be wrong with a workload, in the words of whoever chose it."""

from __future__ import annotations


class LoadError(Exception):
    """One sentence for the person who typed the command."""


class TraceError(LoadError):
    """A trace that cannot be read. `line` is 1-based, 0 where the whole file is meant."""

    def __init__(self, path: str, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")
        self.path = path
        self.line = line

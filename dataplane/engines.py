"""What this process knows of each base URL that it sends requests to: one look-up a request finds all of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane.headers import place

if TYPE_CHECKING:
    from dataplane.upstream import UpstreamConnection
    from runtime._passing import Stream


class Steps:
    """What steps by itself: an engine, or one data-parallel rank of it. tokens_at, timekeeper: when tokens came last, 0:
    nothing new, and which stream says so (`token_times`); streams: those that pass without being shown to anybody, which keep
    their time themselves."""

    __slots__ = ("streams", "timekeeper", "tokens_at")

    def __init__(self) -> None:
        self.streams: dict[Stream, None] = {}
        self.tokens_at = 0.0
        self.timekeeper: UpstreamConnection | None = None


class Engine(Steps):
    """One base URL. idle: connections that wait for a request, newest last; active: requests under way there; ranks: those that
    requests were steered to."""

    __slots__ = ("_lines", "_policy", "_worker", "active", "idle", "ranks")

    def __init__(self) -> None:
        super().__init__()
        self.idle: list[UpstreamConnection] = []
        self.active = 0
        self.ranks: dict[int, Steps] = {}
        self._worker = self._policy = ""
        self._lines = place("", "", 1)

    def rank(self, number: int) -> Steps:
        """A data-parallel rank of it."""
        steps = self.ranks.get(number)
        if steps is None:
            steps = self.ranks[number] = Steps()
        return steps

    def lines(self, worker: str, policy: str) -> bytes:
        """Header lines of a first attempt, as `headers.place` writes them: the same ones follow each other."""
        if worker != self._worker or policy != self._policy:
            self._lines = place(worker, policy, 1)
            self._worker, self._policy = worker, policy
        return self._lines


class Engines(dict[str, Engine]):
    """By base URL; one that is not there yet is made."""

    def __missing__(self, url: str) -> Engine:
        engine = self[url] = Engine()
        return engine

    def sweep(self) -> None:
        """Forget where nothing is left: engines come and go."""
        for url in [url for url, engine in self.items() if not engine.idle and not engine.active]:
            del self[url]

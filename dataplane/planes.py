"""Which of several control planes decides. Pure: `now` is an argument, monotonic seconds.

They are a list in order of preference. A process keeps to the one that it has until that one fails; then it takes the first
that answers and has read its fleet. It comes back to an earlier one once that has answered without a break for a while, has
read its fleet and is not catching up with it. One that fails soon after such a return has to be steady for twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from proto import routing_pb2 as pb

SILENT_S = 2.5
"""A view comes once a second: whoever watches and hears none for this long has lost its control plane."""
REST_S_MIN = 0.05
REST_S_MAX = 1.0
"""How long one whose stream broke is left alone: twice as long each time it breaks at once."""
SHORT_S = 3.0
"""A stream that lasted no longer broke at once."""
STEADY_S_MIN = 3.0
STEADY_S_MAX = 60.0
"""How long an earlier one has to be steady before it is returned to."""
RELAPSE_S = 60.0
"""A return that ends in a failure within this was a mistake."""
FIRST_S = 0.5
"""At the start of a process: how long the others wait for the first of the list to answer."""


class Plane:
    """One control plane as this process sees it."""

    __slots__ = (
        *("heard_at", "rest_s", "rests_until", "returned_at"),
        *("steady_s", "steady_since", "taken_at", "target", "view", "watched"),
    )

    def __init__(self, target: str) -> None:
        self.target = target
        self.view: pb.FleetView | None = None
        """The last one from it."""
        self.watched = False  # its views are coming
        self.heard_at = 0.0
        self.steady_since: float | None = None
        self.steady_s = STEADY_S_MIN
        self.rests_until = 0.0
        self.rest_s = REST_S_MIN
        self.taken_at = 0.0
        self.returned_at: float | None = None

    def answers(self, now: float) -> bool:
        """Its views are coming, and it is not left alone."""
        return self.watched and now - self.heard_at < SILENT_S and now >= self.rests_until

    @property
    def warm(self) -> bool:
        """It has read its fleet."""
        return self.view is not None and self.view.warm

    @property
    def exact(self) -> bool:
        """It has, and knows what every worker's cache holds."""
        return self.view is not None and self.view.warm and not self.view.catching_up


class Planes:
    """targets: in order of preference, at least one."""

    def __init__(self, targets: Iterable[str], now: float) -> None:
        self._planes = tuple(Plane(target) for target in targets)
        self._began_at = now
        self.current: Plane | None = None
        """Whose stream was opened last."""
        self.changes = 0

    def __iter__(self) -> Iterator[Plane]:
        return iter(self._planes)

    def __len__(self) -> int:
        return len(self._planes)

    # --- what happened ---

    def heard(self, plane: Plane, view: pb.FleetView, now: float) -> None:
        """A view came from it."""
        paused = not plane.watched or now - plane.heard_at >= SILENT_S
        plane.view, plane.watched, plane.heard_at = view, True, now
        if not plane.warm:
            plane.steady_since = None
        elif plane.steady_since is None or paused:
            plane.steady_since = now

    def unwatched(self, plane: Plane) -> None:
        """Its views come no more."""
        plane.watched, plane.steady_since = False, None

    def taken(self, plane: Plane, now: float) -> None:
        """Its stream is open."""
        returns = self.current is not None and self._earlier(plane, self.current)
        self.changes += self.current is not None and self.current is not plane
        self.current = plane
        plane.taken_at = now
        plane.returned_at = now if returns else plane.returned_at

    def failed(self, plane: Plane, now: float) -> bool:
        """Its stream broke, or nothing came back on it. Whether that is news: it had lasted, or was the first."""
        plane.steady_since = None
        if now - plane.taken_at >= SHORT_S:
            plane.rest_s = REST_S_MIN
        news = plane.rest_s == REST_S_MIN
        plane.rests_until = now + plane.rest_s
        plane.rest_s = min(REST_S_MAX, 2 * plane.rest_s)
        if plane.returned_at is not None:
            relapsed = now - plane.returned_at < RELAPSE_S
            plane.steady_s = min(STEADY_S_MAX, 2 * plane.steady_s) if relapsed else STEADY_S_MIN
            plane.returned_at = None
        return news

    # --- who is next ---

    def next(self, now: float) -> Plane | None:
        """Whom to open a stream to. None: nobody answers."""
        answering = [plane for plane in self._planes if plane.answers(now)]
        if not answering or (self._begins(now) and answering[0] is not self._planes[0]):
            return None
        return next((plane for plane in answering if plane.warm), answering[0])

    def other(self, now: float) -> Plane | None:
        """Whom to go on with if the current one were gone."""
        answering = [plane for plane in self._planes if plane is not self.current and plane.answers(now)]
        return next((plane for plane in answering if plane.warm), None)

    def better(self, now: float) -> Plane | None:
        """An earlier one than the current to return to."""
        for plane in self._planes:
            if plane is self.current:
                return None
            if self.current is None or plane.steady_since is None or now - plane.steady_since < plane.steady_s:
                continue
            if plane.answers(now) and (plane.exact or not self.current.exact):
                return plane
        return None

    def rest_s(self, now: float) -> float:
        """How long to wait where nobody is next: somebody may be, then."""
        until = [plane.rests_until for plane in self._planes if plane.rests_until > now]
        if self._begins(now):
            until.append(self._began_at + FIRST_S)
        return min(until, default=now + REST_S_MAX) - now

    def _begins(self, now: float) -> bool:
        return self.current is None and now < self._began_at + FIRST_S

    def _earlier(self, one: Plane, other: Plane) -> bool:
        return self._planes.index(one) < self._planes.index(other)

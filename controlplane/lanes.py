"""The endpoints of a model as the short way wants them: rows, with what is asked of them again and again at hand.

They are made once per change of the fleet or the policy and brought up to date at the beginning of a `Moment`: nothing comes
between the questions of one message but their own reservations.
"""

from __future__ import annotations

from contract.outcome import END_NAMES, End
from controlplane.director import TOO_SHORT
from controlplane.explain import Absent, Moment
from controlplane.profiles import Profile
from controlplane.ranking import Brief
from controlplane.row import Row
from controlplane.snapshot import FleetSnapshot, Lane
from controlplane.tally import Tally

_COMPLETE = END_NAMES[int(End.COMPLETE)]


class ReadyLane:
    """A lane of endpoints of one block size; as it is until the fleet or the policy changes."""

    __slots__ = ("absent", "block_size", "by_slot", "rows", "tokens_max")

    def __init__(self, lane: Lane, rows: list[Row]) -> None:
        self.rows = rows
        self.by_slot = {row.slot: row for row in rows}
        (self.block_size,) = lane.masks
        self.tokens_max = lane.taken_by_all
        self.absent: Absent = tuple((endpoint, endpoint.absence or TOO_SHORT) for endpoint in lane.absent)

    def begin(self, profile: Profile, now: float, unix_offset_s: float) -> Moment | None:
        """Brings the rows up to date. None: not all of them take requests like any other, or the ranker has no short way among
        them."""
        active_max = profile.active_max
        standings, token_ats = [], []
        for row in self.rows:
            endpoint, load = row.endpoint, row.load
            if not endpoint.breaker.closed or not endpoint.credit:
                return None
            standing = endpoint.standing
            if standing is None or standing.changes != load.changes:
                standing = endpoint.stands(now)
            if standing.active > active_max:
                return None
            if standing is not row.standing:
                row.stands(standing, active_max)
            standings.append(standing)
            token_ats.append(load.token_at)
        brief: Brief | None = None
        reason = ""
        if profile.brief is not None:
            assert profile.choose is not None, f"{profile.name}: a short way of its ranker, none of its scorers"
            found = profile.brief.brief(self.rows, profile.choose, now)
            if found is None:
                return None
            brief, reason = (None, found) if isinstance(found, str) else (found, "")
        return Moment(
            *(now, now + unix_offset_s, profile, tuple(standings), tuple(token_ats), self.block_size, self.absent),
            *(brief, reason),
        )


class ReadyLanes:
    """Those of all models, made as they are asked for."""

    def __init__(self, snapshot: FleetSnapshot, tally: Tally) -> None:
        self._snapshot = snapshot
        self._tally = tally
        self._version = -1
        self._policy = ""
        self._lanes: dict[str, ReadyLane] = {}

    def look(self, policy: str) -> None:
        """Whether the fleet or the policy is another by now: then all rows are old."""
        if self._version != self._snapshot.version or self._policy != policy:
            self._version, self._policy = self._snapshot.version, policy
            for lane in self._lanes.values():
                for row in lane.rows:
                    row.current = False
            self._lanes.clear()

    def lane(self, model: str) -> ReadyLane | None:
        """None: there is none, or its endpoints are not alike."""
        lane = self._lanes.get(model)
        if lane is None:
            found = self._snapshot.lane(model)
            if found is None or len(found.masks) != 1 or found.ranked:
                return None  # not remembered: callers invent as many names as they like
            by_url = self._snapshot.by_url
            if any(by_url.get(endpoint.place) is not endpoint for endpoint in found.serving):
                return None
            tally, policy, rows = self._tally, self._policy, []
            for at, endpoint in enumerate(found.serving):
                worker = endpoint.record.worker
                rows.append(Row(endpoint, at, tally.decision(policy, worker), tally.end(worker, _COMPLETE)))
            lane = self._lanes[model] = ReadyLane(found, rows)
        return lane

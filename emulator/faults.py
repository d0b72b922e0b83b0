"""What can be made to go wrong, and what is set to. Pure state; the server and the driver look here.

Each fault is set by `POST /emulator/faults {"kind": ..., ...}` (only with --faults). Those with a count wear off.

    die                    the engine dies: streams end with an error event, /health 503, new requests 500; later the exit
    hang                   no step is made; /health and /metrics answer as if nothing were (seconds: then it goes on; rank: at
                           that data-parallel rank alone)
    drain                  as after SIGTERM with a shutdown timeout: new requests get 200 and finish_reason "abort"
    slow                   every step takes `factor` times as long
    busy                   503, queue full (count)
    reset_before_headers   the connection is reset instead of an answer (count)
    reset_mid_stream       the connection is reset after `after_events` events (count)
    truncate               the stream ends after `after_events` events without [DONE] (count); with clean, by a proper end
    silent                 headers, then nothing, for as long as the client stays (count)
    drop_kv_events         `count` batches of KV events are numbered but not sent
    clear                  everything back to normal (a dead engine stays dead)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

COUNTED = ("busy", "reset_before_headers", "reset_mid_stream", "truncate", "silent", "drop_kv_events")
KINDS = ("die", "hang", "drain", "slow", *COUNTED, "clear")
FOREVER = 1 << 30


@dataclass(slots=True)
class Fault:
    """One order, as asked for."""

    kind: str
    count: int = FOREVER
    after_events: int = 1
    factor: float = 1.0
    seconds: float | None = None
    clean: bool = True
    rank: int | None = None


@dataclass(slots=True)
class Faults:
    """Faults that are set now."""

    _set: dict[str, Fault] = field(default_factory=dict)

    def put(self, fault: Fault) -> None:
        if fault.kind == "clear":
            self._set.clear()
        else:
            self._set[fault.kind] = fault

    def take(self, kind: str) -> Fault | None:
        """The fault if it is set, one use of it spent."""
        fault = self._set.get(kind)
        if fault is None:
            return None
        fault.count -= 1
        if fault.count <= 0:
            del self._set[kind]
        return fault

    def active(self) -> dict[str, int]:
        """Kinds that are set, with the uses left."""
        return {kind: fault.count for kind, fault in self._set.items()}


def parse(body: Mapping[str, Any]) -> Fault:
    """ValueError: an unknown kind or field, or a value that makes no sense."""
    kind = body.get("kind")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    known = {"kind", "count", "after_events", "factor", "seconds", "clean", "rank"}
    unknown = sorted(set(body) - known)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    fault = Fault(
        kind=str(kind),
        count=int(body.get("count", 1 if kind == "drop_kv_events" else FOREVER)),
        after_events=int(body.get("after_events", 1)),
        factor=float(body.get("factor", 1.0)),
        seconds=None if body.get("seconds") is None else float(body["seconds"]),
        clean=bool(body.get("clean", True)),
        rank=None if body.get("rank") is None else int(body["rank"]),
    )
    if fault.rank is not None and fault.kind != "hang":
        raise ValueError(f"rank goes with hang, not with {fault.kind}")
    if fault.count < 1 or fault.after_events < 0 or fault.factor <= 0:
        raise ValueError("count must be at least 1, after_events at least 0, factor above 0")
    return fault

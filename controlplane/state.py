"""What a control plane says of its decisions when it is asked by SIGUSR1 (runtime.telling). Times are seconds."""

from __future__ import annotations

from controlplane.admission import WaitingRoom
from controlplane.director import Director
from controlplane.endpoint import Endpoint
from controlplane.ingest import Ingest
from controlplane.ledger import Ledger
from controlplane.servicer import RoutingServicer
from controlplane.snapshot import FleetSnapshot

ENDPOINTS_MAX = 40


def of(
    now: float,
    *,
    director: Director,
    snapshot: FleetSnapshot,
    ledger: Ledger,
    waiting: WaitingRoom,
    bus: Ingest,
    routing: RoutingServicer,
) -> dict[str, object]:
    """For JSON."""
    return {
        "policy": director.policy,
        "warm": director.warm,
        "reservations": len(ledger),
        "waiting": len(waiting),
        "held": len(director.settling),
        "sheds": director.tally.sheds,
        "redis": {"connected": bus.connected, "silent_for": round(now - bus.last_word_at, 2)},
        "streams": routing.state(),
        "endpoints": [_endpoint(endpoint, now) for endpoint in snapshot.endpoints()[:ENDPOINTS_MAX]],
    }


def _endpoint(endpoint: Endpoint, now: float) -> dict[str, object]:
    load = endpoint.load
    return {
        "worker": endpoint.worker,
        "serving": endpoint.serving,
        "absence": endpoint.absence,
        "breaker": endpoint.breaker.view(now).name,
        "active": load.active,
        "no_first_byte": load.no_first_byte,
        "moved": round(now - load.moved_at, 2) if load.active else None,
        "reported": round(now - endpoint.reported_at, 2),
        "running": endpoint.running,
        "waiting": endpoint.waiting,
    }

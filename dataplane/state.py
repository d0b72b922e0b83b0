"""What a data plane says of its requests when it is asked by SIGUSR1 (runtime.telling): who waits, where, since when.

It looks into exchanges from outside: nothing of this is anything that a request has to carry.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataplane.app import App

PLACES_MAX = 40
"""Of requests, those with the most."""


def of(app: App) -> dict[str, object]:
    """For JSON. Times are seconds."""
    gateway, connections = app.gateway, app.server.connections
    return {
        "requests": _requests(app),
        "in_flight": gateway.concurrency.in_flight,
        "connections": {
            "open": len(connections),
            "served": sum(one.exchange is not None for one in connections),
            "amid a request": sum(one.busy and one.exchange is None for one in connections),
            "not reading": sum(one.stalled_since > 0 for one in connections),
        },
        "engines": {
            url: {"active": engine.active, "idle connections": len(engine.idle)}
            for url, engine in list(gateway.pool.engines.items())[:PLACES_MAX]
        },
        "retry_tokens": round(gateway.budget.tokens, 1),
        "prompts pending": 0 if gateway.prompt_process is None else gateway.prompt_process.pending,
        "fleet": {
            "version": 0 if gateway.fleet.view is None else gateway.fleet.view.version,
            "available": gateway.fleet.endpoints_available,
            "stuck": sorted(gateway.fleet.stuck),
        },
        "control": app.control.state(),
    }


def _requests(app: App) -> dict[str, str]:
    """By state and engine: how many, and for how long the first and the last of them have been there."""
    now = app.gateway.clock.now()
    ages: defaultdict[str, list[float]] = defaultdict(list)
    for connection in app.server.connections:
        if (exchange := connection.exchange) is not None:
            attempt = exchange._attempt
            where, since = ("", exchange._started_at) if attempt is None else (attempt.target.url, attempt.sent_at)
            ages[f"{exchange._state.name} {where}".rstrip()].append(now - since)
    most = sorted(ages, key=lambda name: -len(ages[name]))[:PLACES_MAX]
    return {name: f"{len(ages[name])}, for {max(ages[name]):.1f} to {min(ages[name]):.1f} s" for name in most}

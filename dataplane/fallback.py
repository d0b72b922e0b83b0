"""The last fleet view, and decisions from it when the control plane gives none. Pure.

Least active by this process's own counts, ties in turn; endpoints that just failed are skipped while others are left, and
unavailable ones are the last resort: a wrong guess costs one retry, a refusal costs the request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from dataplane.engines import Engines
from proto import routing_pb2 as pb

FAILED_SKIP_S = 2.0
"""How long an endpoint that failed is passed over."""


class Fleet:
    """What this process knows of the fleet without asking. engines: whose requests under way it counts."""

    def __init__(self, engines: Engines | None = None) -> None:
        self.engines = Engines() if engines is None else engines
        self.view: pb.FleetView | None = None
        self.models: dict[str, pb.ModelView] = {}
        self.warm = False  # the control plane that is connected now knows its fleet
        self.stuck: frozenset[str] = frozenset()  # URLs where nothing moves, as the last view says
        self.stuck_ranks: frozenset[tuple[str, int]] = frozenset()  # and single ranks of others
        self.numbers: dict[str, int] = {}  # of endpoints, by URL
        self.wants_token_ages = False
        self._by_model: dict[str, list[pb.EndpointView]] = {}
        self._failed_at: dict[str, float] = {}
        self._turn = 0

    def apply(self, view: pb.FleetView) -> bool:
        """Take over a view. A cold control plane's empty one is not taken over a view that has endpoints: False."""
        self.warm = view.warm
        if not view.warm and not view.endpoints and self.view is not None and self.view.endpoints:
            return False
        self.view = view
        self.models = {model.name: model for model in view.models}
        by_model: dict[str, list[pb.EndpointView]] = {}
        for endpoint in view.endpoints:
            for name in endpoint.models:
                by_model.setdefault(name, []).append(endpoint)
        self._by_model = by_model
        self.stuck = frozenset([endpoint.url for endpoint in view.endpoints if endpoint.stuck])
        self.stuck_ranks = frozenset(
            [(endpoint.url, rank) for endpoint in view.endpoints if not endpoint.stuck for rank in endpoint.stuck_ranks]
        )
        self.numbers = {endpoint.url: endpoint.endpoint for endpoint in view.endpoints}
        self.wants_token_ages = view.token_ages
        self._failed_at = {url: at for url, at in self._failed_at.items() if url in self.numbers}
        return True

    def knows(self, model: str) -> bool:
        """Some endpoint of the last view serves this model. "" is any model."""
        return bool(self._by_model) if not model else model in self._by_model

    @property
    def only_model(self) -> str:
        """The one base model that there is; "": there is none, or a choice."""
        names = [model.name for model in self.models.values() if model.base in ("", model.name)]
        return names[0] if len(names) == 1 else ""

    @property
    def endpoints_available(self) -> int:
        return sum(endpoint.available for endpoint in self.view.endpoints) if self.view is not None else 0

    def has_other(self, model: str, tried: Collection[str]) -> bool:
        """An endpoint is available that was not tried."""
        return any(endpoint.available and endpoint.url not in tried for endpoint in self._by_model.get(model, ()))

    @property
    def active(self) -> dict[str, int]:
        """Requests under way by URL, where there are any."""
        return {url: engine.active for url, engine in self.engines.items() if engine.active}

    def began(self, url: str) -> None:
        self.engines[url].active += 1

    def ended(self, url: str) -> None:
        engine = self.engines[url]
        engine.active -= 1
        assert engine.active >= 0, f"{url}: {engine.active} requests active"

    def failed(self, url: str, now: float) -> None:
        """This endpoint broke a request."""
        self._failed_at[url] = now

    def choose(self, model: str, exclude: Collection[str], now: float) -> pb.EndpointView | None:
        """An endpoint for the model whose URL is not excluded; None where there is none."""
        known = self._by_model.get(model, ()) if model else self.view.endpoints if self.view is not None else ()
        left = [endpoint for endpoint in known if endpoint.url not in exclude]
        if not left:
            return None
        sound = [endpoint for endpoint in left if now - self._failed_at.get(endpoint.url, -1e9) > FAILED_SKIP_S]
        available = [endpoint for endpoint in sound if endpoint.available]
        return self._least_active(available or sound or left)

    def _least_active(self, endpoints: list[pb.EndpointView]) -> pb.EndpointView:
        self._turn += 1
        active = self.active
        least = min(active.get(endpoint.url, 0) for endpoint in endpoints)
        tied = [endpoint for endpoint in endpoints if active.get(endpoint.url, 0) == least]
        return tied[self._turn % len(tied)]


def static_view(pairs: Iterable[tuple[str, str]]) -> pb.FleetView:
    """(model, url) pairs as a fleet view: what serves until a control plane sends one."""
    view = pb.FleetView(warm=True, policy="static")
    by_url: dict[str, pb.EndpointView] = {}
    for model, url in pairs:
        url = url.rstrip("/")
        if url not in by_url:
            number = len(by_url) + 1
            by_url[url] = pb.EndpointView(endpoint=number, worker=f"static-{number}", url=url, available=True)
        by_url[url].models.append(model)
        if all(known.name != model for known in view.models):
            view.models.append(pb.ModelView(name=model, base=model))
    view.endpoints.extend(by_url.values())
    return view

"""Where a request goes when the control plane does not say."""

from __future__ import annotations

from collections.abc import Collection

from contract.routing import Answer
from dataplane import errors
from dataplane.errors import ApiError
from dataplane.gateway import Gateway


def place(gateway: Gateway, model: str, tried: Collection[str]) -> Answer | ApiError:
    """An endpoint of the last fleet view, as an answer without a decision, or why there is none. tried: URLs."""
    fleet, metrics = gateway.fleet, gateway.metrics
    if fleet.view is None:
        metrics.sheds.add("no_fleet_view")
        return errors.overloaded("The fleet is not known yet: no control plane has answered.", "no_fleet_view")
    if not fleet.knows(model):
        metrics.sheds.add("unknown_model")
        return errors.unknown_model(model)
    chosen = fleet.choose(model, tried, gateway.clock.now())
    if chosen is None:
        metrics.sheds.add("excluded")
        return errors.overloaded(f"No other worker of `{model}` is left to try.", "all_tried")
    metrics.decisions.add("fallback")
    return Answer(0, endpoint=chosen.endpoint, url=chosen.url, worker=chosen.worker, policy="fallback")

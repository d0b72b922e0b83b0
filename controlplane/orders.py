"""What operators have set, and all control planes of a fleet hold to: the policy, and who is drained. Pure.

Each order has a moment and holds until a later one about the same thing. Whoever hears of orders keeps the latest of each, so
all come to the same, whatever reached them first, and one that starts late is told by the others. They live as long as one of
the control planes does: when all are started anew, their settings hold again.
"""

from __future__ import annotations

from collections.abc import Iterable

from contract.replicas import DRAIN, ORDERS_MAX, POLICY, Order, later

_YES, _NO = "1", ""


class Orders:
    """by: the control plane whose orders these are."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._latest: dict[str, Order] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def set_policy(self, name: str, at_ms: int) -> None:
        """at_ms: Unix time."""
        self._give(POLICY, name, at_ms)

    def set_draining(self, worker: str, draining: bool, at_ms: int) -> None:
        self._give(DRAIN + worker, _YES if draining else _NO, at_ms)

    def _give(self, name: str, value: str, at_ms: int) -> None:
        known = self._latest.get(name)
        at_ms = at_ms if known is None else max(at_ms, known.at_ms + 1)  # the latest word, whatever the clocks say
        self.take([Order(name, at_ms, self._by, value)])

    def take(self, orders: Iterable[Order]) -> bool:
        """Whether any of them is news."""
        news = False
        for order in orders:
            known = self._latest.get(order.name)
            if known is None and len(self._latest) >= ORDERS_MAX:
                continue
            if known is None or later(known, order) != known:
                self._latest[order.name] = order
                news = True
        return news

    def listed(self) -> tuple[Order, ...]:
        return tuple(self._latest.values())

    @property
    def policy(self) -> str:
        """ "": nobody has set any."""
        order = self._latest.get(POLICY)
        return "" if order is None else order.value

    def draining(self) -> dict[str, bool]:
        """By worker, of those that somebody drained or took back."""
        start = len(DRAIN)
        return {name[start:]: order.value == _YES for name, order in self._latest.items() if name.startswith(DRAIN)}

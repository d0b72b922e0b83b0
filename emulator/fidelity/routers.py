"""Stand-ins for the routers of the recording, whose rules it does not state, and the replicas behind them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from emulator.engine import Engine
from emulator.sequence import Request

REPLICAS = 8
IMBALANCE_MAX = 8
"""Requests between the busiest and the idlest replica from which on prefixes do not count."""


class Replica:
    """One engine in virtual time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = 0.0
        self.first_s: dict[str, float] = {}
        """When each request got its first token."""
        self.users: set[int] = set()
        """Whose prompts it has served."""

    @property
    def num_live(self) -> int:
        return self.engine.num_live

    def add(self, user: int, request: Request, at_s: float) -> None:
        if not self.engine.has_work:
            self.now = max(self.now, at_s)
        self.users.add(user)
        self.engine.add(request, at_s)

    def advance(self, until_s: float) -> None:
        """Every step that begins before `until_s`."""
        while self.engine.has_work and self.now < until_s:
            result = self.engine.step(self.now, brief=True)
            self.now += result.duration_s
            for sequence, _, _ in result.outputs:
                self.first_s.setdefault(sequence.request.request_id, sequence.first_token_s or self.now)


Choose = Callable[[int, Sequence[Replica], random.Random], int]
"""(user, replicas, rng) -> the replica's number."""


@dataclass(frozen=True, slots=True)
class Router:
    """says: its rule in a few words; off_gpu: KV is kept outside the GPU too; warm: the recording began with full caches."""

    says: str
    choose: Choose
    off_gpu: bool = False
    warm: bool = False


def routers() -> dict[str, Router]:
    """By the recording's name for the setup."""
    return {
        "naive": Router("any replica", blind),
        "aibrix_naive": Router("less busy of two", of_two),
        "aibrix_naive_prefix_routing": Router("prefix", prefix, warm=True),
        "aibrix_kvcache_dram": Router("prefix, KV off GPU", prefix, off_gpu=True, warm=True),
        "aibrix_kvcache_external": Router("prefix, KV off GPU", prefix, off_gpu=True, warm=True),
        "ps_stack": Router("by user, KV off GPU", by_user, off_gpu=True, warm=True),
    }


def blind(user: int, replicas: Sequence[Replica], rng: random.Random) -> int:
    """Knows nothing."""
    return rng.randrange(len(replicas))


def of_two(user: int, replicas: Sequence[Replica], rng: random.Random) -> int:
    """The one of two that has less to do."""
    first, second = rng.sample(range(len(replicas)), 2)
    return first if replicas[first].num_live <= replicas[second].num_live else second


def prefix(user: int, replicas: Sequence[Replica], rng: random.Random) -> int:
    """A replica that served this user and has not clearly more to do than the others, else the one with least to do."""
    loads = [replica.num_live for replica in replicas]
    places = range(len(replicas))
    if max(loads) - min(loads) <= IMBALANCE_MAX:
        bound = fmean(loads) + pstdev(loads)
        known = [place for place in places if user in replicas[place].users and loads[place] <= bound]
        if known:
            return min(known, key=lambda place: loads[place])
    least = min(loads)
    return rng.choice([place for place in places if loads[place] == least])


def by_user(user: int, replicas: Sequence[Replica], rng: random.Random) -> int:
    """Always the same replica."""
    return random.Random(user).randrange(len(replicas))

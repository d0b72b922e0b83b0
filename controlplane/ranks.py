"""Data-parallel ranks: engines of which several stand behind one address, each with a scheduler and a KV cache of its own.

Where requests can be steered to them, each rank is an endpoint by itself: a number of its own, its own row in the ledger, its
own blocks, rates and self-check, and a breaker of its own for what is known of it alone: that it hangs (see rank_breaker). What
belongs to the address is shared: the breaker for what fails there, whether it lives, whether it is drained. Whoever was tried
at one rank is not sent to another of the same address, since what fails there is mostly the server; but whoever waited at a
rank that hangs while others move is (contract.routing.numbered).

Which engines. vLLM reads the header X-data-parallel-rank from 0.11.1 on; older ones ignore it and balance by themselves, and
then every figure kept by rank would be wrong. So `auto` steers where the agent found that the ranks can be named and where the
version is known to be new enough; elsewhere an engine of several ranks is one endpoint, and the best match of its ranks is its
match. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from contract.keyspace import WorkerRecord

AUTO: Final = "auto"
OFF: Final = "off"
HEADER_SINCE = (0, 11, 1)
"""The first vLLM that does as the header says."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")
_DEVELOPMENT = "dev"

Steering = Callable[[WorkerRecord], int]
"""How many endpoints an engine is."""


def steered(record: WorkerRecord) -> int:
    """Its ranks where requests can be sent to each; else 1."""
    return record.named_ranks if record.named_ranks > 1 and obeys(record.engine_version) else 1


def together(record: WorkerRecord) -> int:
    """One endpoint, whatever is behind it."""
    return 1


def obeys(version: str) -> bool:
    """Whether an engine of this version does as the header says. A build from source counts as new."""
    found = _VERSION.match(version)
    return found is not None and (_DEVELOPMENT in version or (int(found[1]), int(found[2]), int(found[3] or 0)) >= HEADER_SINCE)


def place(url: str, rank: int) -> str:
    """Where a request is counted. rank: -1 where the engine has one alone.

    Rank 0 is counted under the address itself, as is what somebody says about the address without a rank. No base URL has a
    fragment, so the others are told apart from every address.
    """
    return url if rank < 1 else f"{url}#{rank}"

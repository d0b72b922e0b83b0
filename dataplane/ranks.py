"""Requests for which a data-parallel rank was decided, at engines that would not look at it. Pure."""

from __future__ import annotations

import msgspec

from contract.routing import Answer

RANK_PATHS = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages"))
"""Where engines read X-data-parallel-rank (vLLM up to 0.32). Elsewhere they balance over their ranks whatever it says."""
BALANCED = -2
"""In place of the rank that was decided, where the engine chooses by itself: what it then finds in a cache is no word on the
match that was predicted."""


def steered(answer: Answer, path: str) -> Answer:
    """answer: one that names a rank. The same, or without, where the engine would not look at it."""
    return answer if path in RANK_PATHS else msgspec.structs.replace(answer, rank=BALANCED)

"""A request as a question to the control plane. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contract.routing import Asked
from contract.routing import Request as Wanted
from dataplane import wishes
from dataplane.errors import ApiError
from dataplane.http1 import Request
from dataplane.keys import Key
from dataplane.openai import Ask
from dataplane.prompts import Prompt


def build(
    request: Request, ask: Ask, prompt: Prompt, *, request_id: str, attempt: int, exclude: Sequence[int], key: Key | None = None
) -> Asked:
    """Without its question_id. exclude: endpoint numbers already tried; key: what it decides is not the caller's to say."""
    wanted = Wanted(
        model=ask.model,
        input_tokens=prompt.input_tokens,
        exact_tokens=prompt.kind == "tokens",
        max_tokens=ask.max_tokens,
        exclude=tuple(exclude),
        request_id=request_id,
        attempt=attempt,
        streams=ask.streams,
    )
    if request.forwarded is None or key is not None:  # else its head is known to hold no wishes
        found = wishes.read(request.headers)
        wished: dict[str, Any] = {} if isinstance(found, ApiError) else {**found}  # `preparing` has refused what is unreadable
        if key is not None:
            if not key.may_set_tenant or not wished.get("tenant"):
                wished["tenant"] = key.tenant
            wished["priority"] = min(wished.get("priority", 0), key.priority_max)
        if wished:
            wanted = msgspec.structs.replace(wanted, **wished)
    return Asked(0, wanted, prompt.chains)

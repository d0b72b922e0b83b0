"""A request as a question to the control plane. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from contract.routing import Asked
from contract.routing import Request as Wanted
from dataplane.http1 import Request
from dataplane.keys import Key
from dataplane.openai import Ask
from dataplane.prompts import Prompt

PRIORITY_MIN, PRIORITY_MAX = -(2**31), 2**31 - 1
NAME_CHARS_MAX = 256
"""Of what a caller calls its request, its tenant, its session: they are kept in explanations and records."""


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
        wishes = _wishes(request)
        if key is not None:
            if not key.may_set_tenant or not wishes.get("tenant"):
                wishes["tenant"] = key.tenant
            wishes["priority"] = min(wishes.get("priority", 0), key.priority_max)
        if wishes:
            wanted = msgspec.structs.replace(wanted, **wishes)
    return Asked(0, wanted, prompt.chains)


def _wishes(request: Request) -> dict[str, Any]:
    """The caller's, from its headers; what cannot be read is as if it were not there."""
    wishes: dict[str, Any] = {}
    for name, value in request.headers:
        if name.startswith(b"x-headway-"):
            _read_header(wishes, name, value)
    return wishes


def _read_header(wishes: dict[str, Any], name: bytes, value: bytes) -> None:
    text = value.decode("latin-1").strip()
    try:
        if name == b"x-headway-slo-ttft-ms":
            wishes["slo_ttft_ms"] = max(0.0, float(text))
        elif name == b"x-headway-priority":
            wishes["priority"] = max(PRIORITY_MIN, min(PRIORITY_MAX, int(text)))
        elif name == b"x-headway-tenant" and len(text) <= NAME_CHARS_MAX:
            wishes["tenant"] = text
        elif name == b"x-headway-session" and len(text) <= NAME_CHARS_MAX:
            wishes["session"] = text
    except ValueError:
        pass

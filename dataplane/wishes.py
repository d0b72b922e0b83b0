"""What a caller wishes for its request, in `x-headway-` headers. Pure.

A header that cannot be read is refused: a caller who believes that it has a bound, and has none, finds out when it matters. An
empty value is as if the header were not there, and a name that Headway does not know is nobody's business here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from dataplane.errors import ApiError, bad_request

SLO_TTFT_MS_MAX = 86_400_000
"""A day. Longer bounds are slips of the pen, such as microseconds."""
PRIORITY_MIN, PRIORITY_MAX = -(2**31), 2**31 - 1
NAME_CHARS_MAX = 256
"""Of what a caller calls its request, its tenant, its session: they are kept in explanations and records."""

_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")

Wishes = dict[str, float | int | str]
"""By the names of `contract.routing.Request`'s fields; what was not wished for is not in it."""


def read(headers: Iterable[tuple[bytes, bytes]]) -> Wishes | ApiError:
    """headers: names in lower case. ApiError: 400, naming the header and what it takes."""
    wishes: Wishes = {}
    for name, value in headers:
        if not name.startswith(b"x-headway-"):
            continue
        known = _KNOWN.get(name)
        text = value.decode("latin-1").strip()
        if known is None or not text:
            continue
        field, taken, parse = known
        wish = parse(text)
        if wish is None:
            header = name.decode()
            return bad_request(f"The header `{header}` must be {taken}.", param=header, code="header_invalid")
        wishes[field] = wish
    return wishes


def _slo_ttft_ms(text: str) -> float | None:
    value = float(text) if _NUMBER.fullmatch(text) else 0.0
    return value if 0.0 < value <= SLO_TTFT_MS_MAX else None


def _priority(text: str) -> int | None:
    value = int(text) if _INTEGER.fullmatch(text) else PRIORITY_MAX + 1
    return value if PRIORITY_MIN <= value <= PRIORITY_MAX else None


def _name(text: str) -> str | None:
    return text if len(text) <= NAME_CHARS_MAX else None


_SHORT = f"at most {NAME_CHARS_MAX} characters"
_KNOWN: dict[bytes, tuple[str, str, Callable[[str], float | int | str | None]]] = {
    b"x-headway-slo-ttft-ms": (
        "slo_ttft_ms",
        f"milliseconds above 0 and up to {SLO_TTFT_MS_MAX:,} (leave it out for no bound)",
        _slo_ttft_ms,
    ),
    b"x-headway-priority": ("priority", f"an integer from {PRIORITY_MIN} to {PRIORITY_MAX}", _priority),
    b"x-headway-tenant": ("tenant", _SHORT, _name),
    b"x-headway-session": ("session", _SHORT, _name),
}

NAMES = frozenset(_KNOWN)
"""Said to the router, and not to engines: a tenant is what a key says, and a priority among requests that wait here."""

"""Questions and outcomes of usual requests as plain tuples, with the fields of `contract.routing` in their order.

Packed they are the same bytes (a test holds them against each other): a struct of twelve fields takes twice as long to build
and longer to pack. Whoever wants to read one makes it a struct first.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from contract.routing import Asked, Ended, Said

Chains: TypeAlias = tuple[tuple[int, bytes], ...]
RequestRow: TypeAlias = tuple[str, int, bool, int, str, int, float, tuple[int, ...], str, str, int, bool]
AskedRow: TypeAlias = tuple[int, RequestRow, Chains]
EndedRow: TypeAlias = tuple[int, int, int, float, float, int, int, int, bool, float, str]
"""Without what is said only where the control plane did not decide."""


def asked(found: Asked | AskedRow) -> Asked:
    return found if isinstance(found, Asked) else msgspec.convert(found, Asked)


def ended(found: Ended | EndedRow) -> Ended:
    return found if isinstance(found, Ended) else msgspec.convert(found, Ended)


def said(found: Said) -> Said:
    """All of it as structs."""
    return Said(
        list(map(asked, found.questions)), found.first_bytes, list(map(ended, found.outcomes)), found.cancels, found.token_ages
    )

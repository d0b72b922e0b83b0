"""Commands as Redis reads them, for whoever writes them by itself."""

from __future__ import annotations


def packed(*parts: bytes | str | int) -> bytes:
    """One command."""
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join([b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded])

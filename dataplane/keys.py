"""Callers' API keys: what a line of the keys file says, and whose key a token is. Pure.

A key is 256 random bits, so a plain SHA-256 at rest cannot be guessed back and costs a microsecond a request; passwords would
need a slow hash, and are not accepted here. One JSON object a line; blank lines and lines that begin with `#` are skipped:

    {"id": "k3f9a1c2", "hash": "sha256:...", "tenant": "search", "requests_per_minute": 600, "models": ["llama"]}

Numbers: 0 or left out is no limit. `models`: empty is every model. `priority_max`: the most urgent class this key may ask for.
`may_set_tenant`: its requests may name their tenant themselves (a gateway in front of this one).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

import msgspec

TOKEN_PREFIX = "hw-"
TOKEN_BYTES = 32
KEYS_MAX = 100_000
_PREFIX = "sha256:"
_DIGEST_HEX = 64


class KeysError(ValueError):
    """The keys file cannot be used; the message names the line, never its content."""


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One caller."""

    id: str
    hash: str
    tenant: str = ""
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_max: int = 0
    priority_max: int = 0
    models: tuple[str, ...] = ()
    may_set_tenant: bool = False


_decoder = msgspec.json.Decoder(Key)


def new_token() -> str:
    """A key as its caller holds it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: bytes) -> str:
    """As kept at rest."""
    return _PREFIX + hashlib.sha256(token).hexdigest()


def line_of(key: Key) -> bytes:
    """As a line of the keys file, without its end."""
    return msgspec.json.encode(key)


def parse(text: bytes) -> list[Key]:
    """Every key of a file. KeysError: a line that is no key, an id or a hash that comes twice, too many keys."""
    found: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith(b"#"):
            found.append(_parse_line(number, line))
    for what, values in (("id", [key.id for key in found]), ("hash", [key.hash for key in found])):
        if len(set(values)) != len(values):
            raise KeysError(f"an {what} comes twice" if what == "id" else "a hash comes twice")
    if len(found) > KEYS_MAX:
        raise KeysError(f"{len(found):,} keys are more than {KEYS_MAX:,}")
    return found


def _parse_line(number: int, line: bytes) -> Key:
    try:
        key = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The library's message could quote the line.
        raise KeysError(f"line {number} is not a key (a JSON object with id and hash)") from None
    digest = key.hash.removeprefix(_PREFIX)
    if not key.hash.startswith(_PREFIX) or len(digest) != _DIGEST_HEX or not set(digest) <= set("0123456789abcdef"):
        raise KeysError(f"line {number}: the hash is not sha256: and {_DIGEST_HEX} hexadecimal digits")
    if not key.id or min(key.requests_per_minute, key.tokens_per_minute, key.concurrent_max) < 0:
        raise KeysError(f"line {number}: an empty id, or a limit below 0")
    return key


class KeyRing:
    """Keys by their hashes."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_hash = {key.hash: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, token: bytes) -> Key | None:
        """Whose key this is. A look-up's time tells of a SHA-256 only, and the last word takes constant time."""
        hashed = hash_of(token)
        key = self._by_hash.get(hashed)
        return key if key is not None and hmac.compare_digest(key.hash, hashed) else None

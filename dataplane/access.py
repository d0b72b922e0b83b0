"""Who may call: the keys file, read again when it changes, and a request's key.

A file that cannot be read, or is wrong, leaves the keys as they were: a slip of the pen must not lock everybody out, nor let
anybody in. At the start it is an error.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dataplane.errors import ApiError
from dataplane.http1 import Request
from dataplane.keys import Key, KeyRing, KeysError, parse
from dataplane.limits import Account, Permit
from dataplane.shared_limits import SharedAccount, SharedTable
from runtime.files import Changes

log = logging.getLogger(__name__)

CREDENTIAL_BYTES_MAX = 512

_MISSING = ApiError(
    401,
    "You didn't provide an API key. Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
    code="missing_api_key",
)
_INVALID = ApiError(401, "Incorrect API key provided.", code="invalid_api_key")  # never quotes what was sent


class Access:
    """path: of the keys file; table: where processes keep together what keys have used; share: without one, how many processes
    divide a key's limits. KeysError, OSError: it cannot be used."""

    def __init__(self, path: str, *, share: int, now: float, table: SharedTable | None = None) -> None:
        self._path = Path(path)
        self._share = share
        self._table = table
        self._counted: set[str] = set()  # ids whose requests in flight this process has counted in the table
        self._accounts: dict[str, Account] = {}
        self._changes = Changes(path)
        self._ring = KeyRing(())
        self._adopt(parse(self._path.read_bytes()), now)

    def __len__(self) -> int:
        return len(self._ring)

    def reload_if_changed(self, now: float) -> None:
        """A stat; the file is read where it is another one than before."""
        if self._changes():
            self.reload(now)

    def reload(self, now: float) -> None:
        """Requests under way keep the key they came with."""
        try:
            self._adopt(parse(self._path.read_bytes()), now)
        except (KeysError, OSError) as error:
            log.error("the keys file cannot be used; the keys stay as they were", extra={"f": {"why": _why(error)}})
        else:
            log.info("keys read", extra={"f": {"keys": len(self._ring)}})

    def identify(self, request: Request) -> Key | ApiError:
        """Whose request this is."""
        token = _credential(request)
        if not token:
            return _MISSING
        key = self._ring.find(token) if len(token) <= CREDENTIAL_BYTES_MAX else None
        return key if key is not None else _INVALID

    def is_bound(self, request: Request) -> bool:
        """Its key may use some models only."""
        key = self.identify(request)
        return isinstance(key, Key) and bool(key.models)

    def admit(self, request: Request, now: float) -> Permit | ApiError:
        """For a request that goes to a worker. Each Permit needs one `close`."""
        key = self.identify(request)
        if isinstance(key, ApiError):
            return key
        account = self._accounts[key.id]
        refusal = account.enter(now)
        return Permit(key, account) if refusal is None else refusal

    def rate_headers(self, request: Request, now: float) -> list[bytes]:
        """x-ratelimit lines for a request that was refused before it was one."""
        key = self.identify(request)
        return [] if isinstance(key, ApiError) else self._accounts[key.id].headers(now)

    def _adopt(self, keys: list[Key], now: float) -> None:
        for key in keys:
            account = self._accounts.get(key.id)
            if account is None or (self._shares(key) and not isinstance(account, SharedAccount)):
                self._accounts[key.id] = self._open(key, now)
            else:
                account.adapt(key, share=self._share, now=now)
        kept = {key.id for key in keys}
        self._accounts = {id: account for id, account in self._accounts.items() if id in kept}
        self._ring = KeyRing(keys)

    def _shares(self, key: Key) -> bool:
        """There is something for the processes to keep together."""
        return self._table is not None and bool(key.requests_per_minute or key.tokens_per_minute or key.concurrent_max)

    def _open(self, key: Key, now: float) -> Account:
        place = self._table.place(key.id) if self._table is not None and self._shares(key) else None
        if place is None:
            return Account(key, share=self._share, now=now)
        if key.id not in self._counted:
            self._counted.add(key.id)
            place.write_count(0)  # what the process that had this one's number before left behind
        return SharedAccount(key, place, now=now)


def _credential(request: Request) -> bytes:
    scheme, _, token = request.get(b"authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return request.get(b"x-api-key").strip()


def _why(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)

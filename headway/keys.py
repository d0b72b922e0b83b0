"""`headway keys new | list | revoke`: the callers' API keys, in the file that the data plane reads (`--keys-file`).

A key is shown once, when it is made; the file holds its SHA-256. A running data plane sees a change within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dataplane.keys import Key, KeysError, hash_of, line_of, new_token, parse
from headway.errors import UsageError

FILE_VARIABLE = "HEADWAY_DATAPLANE_KEYS_FILE"
OWNER_ONLY = 0o600
ID_BYTES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="new|list|revoke")
    new = actions.add_parser("new", help="make a key, print it once, add its hash to the file")
    new.add_argument("--tenant", required=True, help="whose key it is: the tenant of its requests")
    new.add_argument("--requests-per-minute", type=int, default=0, help="0: no limit")
    new.add_argument("--tokens-per-minute", type=int, default=0, help="prompt and output; 0: no limit")
    new.add_argument("--concurrent-max", type=int, default=0, help="requests at once; 0: no limit")
    new.add_argument("--priority-max", type=int, default=0, help="the most urgent class that it may ask for")
    new.add_argument("--model", action="append", default=[], help="a model that it may use, repeated; none: every model")
    new.add_argument("--may-set-tenant", action="store_true", help="its requests may name their tenant (a gateway's key)")
    listed = actions.add_parser("list", help="the keys, without their hashes")
    revoke = actions.add_parser("revoke", help="take a key out of the file")
    revoke.add_argument("id", help="as `headway keys list` shows it")
    for action in (new, listed, revoke):
        action.add_argument("--keys-file", default=os.environ.get(FILE_VARIABLE, ""), help=f"default: {FILE_VARIABLE}")


def run(args: argparse.Namespace) -> int:
    if not args.keys_file:
        raise UsageError(f"no keys file: --keys-file or {FILE_VARIABLE}")
    path = Path(args.keys_file)
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file")
    try:
        if args.action == "list":
            return _list(path)
        with _alone(path.parent):
            return _new(path, args) if args.action == "new" else _revoke(path, args.id)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _new(path: Path, args: argparse.Namespace) -> int:
    if not args.tenant.strip():
        raise UsageError("--tenant: a key without a tenant belongs to nobody")
    token = new_token()
    key = Key(
        id=secrets.token_hex(ID_BYTES),
        hash=hash_of(token.encode()),
        tenant=args.tenant,
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
        concurrent_max=args.concurrent_max,
        priority_max=args.priority_max,
        models=tuple(args.model),
        may_set_tenant=args.may_set_tenant,
    )
    for limit in ("requests_per_minute", "tokens_per_minute", "concurrent_max"):
        if getattr(key, limit) < 0:
            raise UsageError(f"--{limit.replace('_', '-')}: {getattr(key, limit)} is below 0 (no limit)")
    before = path.read_bytes() if path.exists() else b""
    _parse(path, before)
    _write(path, before + (b"\n" if before and not before.endswith(b"\n") else b"") + line_of(key) + b"\n")
    print(token)
    return 0


def _list(path: Path) -> int:
    for key in _parse(path, path.read_bytes()):
        print(f"{key.id}  {key.tenant:<16}  {_limits(key)}")
    return 0


def _revoke(path: Path, id: str) -> int:
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not _is_key(path, line, id)]
    if len(kept) == len(lines):
        raise UsageError(f"{path}: no key {id}")
    _write(path, b"".join(kept))
    print(f"revoked {id}")
    return 0


def _is_key(path: Path, line: bytes, id: str) -> bool:
    return any(key.id == id for key in _parse(path, line))


def _parse(path: Path, text: bytes) -> list[Key]:
    try:
        return parse(text)
    except KeysError as error:
        raise UsageError(f"{path}: {error}") from error


def _limits(key: Key) -> str:
    found = [f"{name} {value:,}" for name, value in _numbers(key) if value]
    found += [f"models {', '.join(key.models)}"] if key.models else []
    found += ["may set tenant"] if key.may_set_tenant else []
    return "; ".join(found) or "no limits"


def _numbers(key: Key) -> list[tuple[str, int]]:
    return [
        ("requests/min", key.requests_per_minute),
        ("tokens/min", key.tokens_per_minute),
        ("at once", key.concurrent_max),
        ("priority up to", key.priority_max),
    ]


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One change at a time: of two that read the same file, the second would undo the first."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(path: Path, text: bytes) -> None:
    """In one step: a data plane never reads half a file, and can read the new one if it could read the old one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        if path.exists():
            before = path.stat()
            os.chmod(name, before.st_mode & 0o777)
            if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.chown(name, before.st_uid, before.st_gid)
        else:
            os.chmod(name, OWNER_ONLY)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise

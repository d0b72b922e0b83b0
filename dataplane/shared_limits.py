"""What keys have used, in memory that the processes of one data plane share: a limit holds for all of them together.

A table of fixed places, found by hashing a key's id, in a file without a name that the parent makes and its children inherit.
A place holds both buckets, and for each process how many requests it has in flight; it is locked for the microseconds of one
step. A process that is killed leaves no lock behind, and the one that takes its number clears its counts. A process that was
stopped amid a step is not waited for: the others go on without the lock, and at worst one step is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Iterator

from dataplane.errors import ApiError
from dataplane.keys import KEYS_MAX, Key
from dataplane.limits import Account, Bucket

PLACES = 1 << (2 * KEYS_MAX - 1).bit_length()
"""Twice the keys there may be; a place that nobody looks at takes no memory."""
LOCK_S_MAX = 0.02
"""For a lock that somebody holds, who was stopped amid a step of microseconds."""
_BUCKETS = struct.Struct("<Qdddddd")  # name; limit, level and time of requests, then of tokens
_COUNT = struct.Struct("<q")
_NAME = struct.Struct("<Q")


class SharedTable:
    """file: from `make_file`; number: of this process, 0..processes - 1."""

    def __init__(self, file: int, *, number: int, processes: int) -> None:
        self._file = file
        self._number = number
        self._processes = processes
        self._size = _BUCKETS.size + _COUNT.size * processes
        self._map = mmap.mmap(file, PLACES * self._size)

    def place(self, id: str) -> Place | None:
        """None: the table is full of keys that were."""
        name = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little") or 1
        at = name % PLACES
        for _ in range(PLACES):
            start = at * self._size
            with self.locked(start):
                (found,) = _NAME.unpack_from(self._map, start)
                if not found:
                    _NAME.pack_into(self._map, start, name)
            if found in (0, name):
                return Place(self, start)
            at = (at + 1) % PLACES
        return None

    @contextlib.contextmanager
    def locked(self, start: int) -> Iterator[None]:
        """One place, from byte `start` on."""
        held = self._lock(start)
        try:
            yield
        finally:
            if held:
                fcntl.lockf(self._file, fcntl.LOCK_UN, self._size, start)

    def _lock(self, start: int) -> bool:
        give_up_at = 0.0
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, self._size, start)
            except OSError:
                now = time.monotonic()
                give_up_at = give_up_at or now + LOCK_S_MAX
                if now > give_up_at:
                    return False
                os.sched_yield()
            else:
                return True

    def close(self) -> None:
        self._map.close()


class Place:
    """One key's. Read and written within `locked`."""

    __slots__ = ("_start", "_table")

    def __init__(self, table: SharedTable, start: int) -> None:
        self._table = table
        self._start = start

    def locked(self) -> contextlib.AbstractContextManager[None]:
        return self._table.locked(self._start)

    def read_buckets(self) -> tuple[float, float, float, float, float, float]:
        """Limit, level, time; of requests and of tokens. Limit 0: none was written."""
        _, *found = _BUCKETS.unpack_from(self._table._map, self._start)
        limit, level, at, token_limit, token_level, token_at = found
        return limit, level, at, token_limit, token_level, token_at

    def write_buckets(self, values: tuple[float, float, float, float, float, float]) -> None:
        (name,) = _NAME.unpack_from(self._table._map, self._start)
        _BUCKETS.pack_into(self._table._map, self._start, name, *values)

    def read_counts(self) -> tuple[int, int]:
        """Requests in flight: here, in the other processes."""
        table = self._table
        counts = [_COUNT.unpack_from(table._map, self._at(number))[0] for number in range(table._processes)]
        own = counts[table._number]
        return own, sum(counts) - own

    def write_count(self, own: int) -> None:
        _COUNT.pack_into(self._table._map, self._at(self._table._number), own)

    def _at(self, number: int) -> int:
        return self._start + _BUCKETS.size + _COUNT.size * number


class SharedAccount(Account):
    """An account whose state is in a place: every step takes it from there and puts it back."""

    __slots__ = ("_own", "_place")

    def __init__(self, key: Key, place: Place, *, now: float) -> None:
        self._place = place
        self._own = 0
        super().__init__(key, share=1, now=now)

    def adapt(self, key: Key, *, share: int, now: float) -> None:
        """To limits that may have changed. share: counts nothing here."""
        super().adapt(key, share=1, now=now)

    def enter(self, now: float) -> ApiError | None:
        with self._step(now):
            return super().enter(now)

    def leave(self) -> None:
        with self._place.locked():
            own, others = self._place.read_counts()
            self.in_flight = own
            super().leave()
            self._place.write_count(self.in_flight)
            self.in_flight += others

    def reserve(self, tokens: int, now: float) -> ApiError | None:
        with self._step(now):
            return super().reserve(tokens, now)

    def settle(self, reserved: int, used: int, now: float) -> None:
        with self._step(now):
            super().settle(reserved, used, now)

    def headers(self, now: float) -> list[bytes]:
        with self._step(now):
            return super().headers(now)

    @contextlib.contextmanager
    def _step(self, now: float) -> Iterator[None]:
        place = self._place
        with place.locked():
            own, others = place.read_counts()
            values = place.read_buckets()
            self.in_flight = before = own + others
            _take(self.requests, *values[:3], now)
            _take(self.tokens, *values[3:], now)
            yield
            place.write_buckets((*_given(self.requests), *_given(self.tokens)))
            place.write_count(own + self.in_flight - before)


def _take(bucket: Bucket | None, limit: float, level: float, at: float, now: float) -> None:
    """limit: as the bucket had it when it was written; what was used stays used when it is another one."""
    if bucket is None:
        return
    if not limit:
        bucket.level, bucket.at = bucket.per_minute, now
    else:
        bucket.level, bucket.at = level + bucket.per_minute - limit, min(at, now)


def _given(bucket: Bucket | None) -> tuple[float, float, float]:
    return (0.0, 0.0, 0.0) if bucket is None else (bucket.per_minute, bucket.level, bucket.at)


def make_file(processes: int) -> int | None:
    """A file for the tables of so many processes, which children inherit; None: this system has none without a name."""
    try:
        file = os.memfd_create("headway-limits")
    except (AttributeError, OSError):
        return None
    os.truncate(file, PLACES * (_BUCKETS.size + _COUNT.size * processes))
    return file

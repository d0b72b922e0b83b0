"""The outcome log: one record a request on a bounded Redis stream, written in batches, never on a request's path.

While Redis does not answer, records wait in a bounded buffer; beyond it the oldest are dropped and counted. A batch whose
answer was lost is written again, so a reader may rarely see a record twice (same decision_id, same attempt).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque

import redis.asyncio
from redis.exceptions import RedisError

from contract import keyspace, outcome
from contract.outcome import Outcome
from runtime.tasks import stop_if_cancelled

log = logging.getLogger(__name__)

BUFFER_MAX = 50_000
BATCH_MAX = 512
_WRITE = f"""
local all, at, o = ARGV[1], 1, ''
while at <= #all do
    o, at = struct.unpack('<I4c0', all, at)
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', {keyspace.OUTCOMES_ENTRIES_MAX}, '*', '{keyspace.OUTCOME_FIELD.decode()}', o)
end
"""
"""One command, one argument (the records, each behind its length) and one answer for a batch: a pipeline of XADDs spends 8 us
a record on its commands and answers, an argument for each record 1."""
INTERVAL_S = 0.02
"""How long a batch gathers."""
BACKOFF_S = 0.25
BACKOFF_S_MAX = 2.0


class OutcomeLog:
    def __init__(self, client: redis.asyncio.Redis, *, buffer_max: int = BUFFER_MAX) -> None:
        self._script = client.register_script(_WRITE)
        self._buffer: deque[Outcome] = deque()
        self._buffer_max = buffer_max
        self._something = asyncio.Event()
        self.written = 0
        self.dropped = 0
        self.failed_writes = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def put(self, record: Outcome) -> None:
        """Never waits, never fails."""
        if len(self._buffer) >= self._buffer_max:
            self._buffer.popleft()
            self.dropped += 1
        self._buffer.append(record)
        self._something.set()

    async def run(self) -> None:
        """Writes until cancelled."""
        backoff_s = 0.0
        while True:
            stop_if_cancelled()
            await self._something.wait()
            await asyncio.sleep(backoff_s or INTERVAL_S)
            try:
                await self.flush()
            except (RedisError, OSError) as error:
                self.failed_writes += 1
                if not backoff_s:
                    log.warning("outcomes wait: Redis does not take them", extra={"f": {"error": error}})
                backoff_s = min(BACKOFF_S_MAX, 2 * backoff_s or BACKOFF_S)
            else:
                backoff_s = 0.0

    async def flush(self) -> None:
        """Writes all that is buffered. RedisError, OSError: the rest stays buffered."""
        while self._buffer:
            batch = [self._buffer.popleft() for _ in range(min(BATCH_MAX, len(self._buffer)))]
            try:
                await self._write(batch)
            except BaseException:
                self._put_back(batch)
                raise
            self.written += len(batch)
        self._something.clear()

    async def close(self, *, timeout_s: float = 1.0) -> None:
        """A last try to write what is left."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.flush()

    def _put_back(self, batch: list[Outcome]) -> None:
        room = max(0, self._buffer_max - len(self._buffer))
        kept = batch[len(batch) - room :] if room < len(batch) else batch
        self.dropped += len(batch) - len(kept)
        self._buffer.extendleft(reversed(kept))

    async def _write(self, batch: list[Outcome]) -> None:
        await self._script(keys=[keyspace.OUTCOMES], args=[b"".join(map(_behind_its_length, batch))])


def _behind_its_length(record: Outcome) -> bytes:
    data = outcome.encode(record)
    return len(data).to_bytes(4, "little") + data

"""Which model serves: followed on Redis, loaded and verified in a thread, put in place between two decisions.

The trainer writes bundles first and then the state that names them; this side reads the state once a second on a connection
of its own, never on a request's path. A bundle that is broken, or made for another version of the features, is refused: what
served before goes on serving, and that is said once. A Redis that does not answer, or forgets, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from contract import keyspace
from contract.keyspace import CodecError
from controlplane.predictor import Forecaster, Sample, residuals
from prediction import bundle, predictor
from prediction.bundle import Manifest
from prediction.errors import BundleError
from prediction.predictor import Predictor
from runtime.clock import Clock
from runtime.tasks import stop_if_cancelled

log = logging.getLogger(__name__)

POLL_S = 1.0
SOCKET_TIMEOUT_S = 5.0

Loaded = tuple[Manifest, Predictor, list[tuple[Sample, float]]]


class ModelStore:
    """One task: `run`. What it loads goes to the forecaster."""

    def __init__(self, redis_url: str, forecaster: Forecaster, clock: Clock, *, poll_s: float = POLL_S) -> None:
        self._url = redis_url
        self._poll_s = poll_s
        self._forecaster = forecaster
        self._clock = clock
        self._said = ""
        self._refused: str | None = None
        self.manifest: Manifest | None = None
        """Of the model that serves; None: none does."""
        self.served_since = clock.now()
        self.swaps = 0
        self.refusals = 0
        """Bundles that could not serve."""

    @property
    def model_id(self) -> str:
        return "" if self.manifest is None else self.manifest.model_id

    async def run(self) -> None:
        """Until cancelled."""
        client = redis.asyncio.Redis.from_url(
            self._url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            while True:
                stop_if_cancelled()
                try:
                    await self.look(client)
                except (RedisError, OSError) as error:
                    log.debug("models: Redis does not answer: %s", error)
                await asyncio.sleep(self._poll_s)
        finally:
            await client.aclose()

    async def look(self, client: redis.asyncio.Redis) -> None:
        """Once. RedisError, OSError: Redis does not answer."""
        data = await client.get(keyspace.MODELS_STATE)
        if data is None:
            return
        try:
            wanted = keyspace.decode_models(_bytes(data)).serving
        except CodecError as error:
            self._refuse(None, str(error))
            return
        if wanted == self.model_id:
            self._settled()
            return
        if wanted == self._refused:
            return
        if not wanted:
            self._forecaster.swap(None, "")
            self._serves(None)
            return
        packed = await client.get(keyspace.model_key(wanted))
        if packed is None:
            self._say(f"model {wanted} should serve and is not on Redis")
            return
        await self._load(wanted, _bytes(packed))

    async def _load(self, wanted: str, packed: bytes) -> None:
        try:
            manifest, serving, replay = await asyncio.to_thread(_loaded, wanted, packed, self._forecaster.recent())
        except (ValueError, ArithmeticError) as error:  # BundleError among them: whatever is wrong with it, ours goes on
            self._refuse(wanted, str(error))
            return
        stop_if_cancelled()
        self._forecaster.swap(serving, manifest.model_id, replay)
        self._serves(manifest)

    def _serves(self, manifest: Manifest | None) -> None:
        self.manifest = manifest
        self.served_since = self._clock.now()
        self.swaps += 1
        self._settled()
        if manifest is None:
            log.info("no model serves")
        else:
            log.info(
                "a model serves",
                extra={"f": {"model": manifest.model_id, "kind": manifest.kind, "samples": manifest.samples}},
            )

    def _settled(self) -> None:
        """What serves is what should: whatever was wrong is over."""
        self._refused, self._said = None, ""

    def _refuse(self, wanted: str | None, why: str) -> None:
        self._refused = wanted
        self.refusals += self._say(why)

    def _say(self, what: str) -> bool:
        """Once, until something else is to be said. Whether it was news."""
        if what == self._said:
            return False
        self._said = what
        log.error("a model cannot serve", extra={"f": {"error": what, "goes_on": self.model_id or "none"}})
        return True


def _loaded(wanted: str, packed: bytes, recent: Sequence[Sample]) -> Loaded:
    """In a thread. BundleError: not a whole model of this build, or not the one that was asked for."""
    found = bundle.decode(packed)
    if found.manifest.model_id != wanted:
        raise BundleError(f"under the name {wanted} lies model {found.manifest.model_id}")
    serving = predictor.load(found)
    return found.manifest, serving, residuals(serving, recent)


def _bytes(data: bytes | str) -> bytes:
    return data if isinstance(data, bytes) else data.encode()

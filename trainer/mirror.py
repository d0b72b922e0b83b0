"""The models in use on Redis, for control planes on any host: bundles first, then the state that names them."""

from __future__ import annotations

import redis.asyncio

from contract import keyspace
from contract.keyspace import CodecError, ModelsState
from prediction import bundle
from trainer.registry import Registry, State


class Mirror:
    """client: a connection of its own. Its errors (RedisError, OSError) pass through; calling again mends everything."""

    def __init__(self, client: redis.asyncio.Redis, registry: Registry) -> None:
        self._client = client
        self._registry = registry
        self._there: set[str] = set()
        self._adopted = False
        self.written = 0

    async def sync(self) -> None:
        """Makes Redis say what the registry says; nothing is written where it does."""
        found = await self._client.get(keyspace.MODELS_STATE)
        data = found.encode() if isinstance(found, str) else found
        if not self._adopted:
            self._adopt(data)
        state = self._registry.state
        wanted = _state_of(state)
        if data is not None and data == keyspace.encode_models(wanted):
            return
        used = [model_id for model_id in (state.serving, state.previous, state.shadow) if model_id]
        for model_id in used:
            await self._client.set(keyspace.model_key(model_id), bundle.encode(self._registry.load(model_id)))
        await self._client.set(keyspace.MODELS_STATE, keyspace.encode_models(wanted))
        self.written += 1
        for model_id in self._there - set(used):  # after the state: nobody reads them any more
            await self._client.delete(keyspace.model_key(model_id))
        self._there = set(used)

    def _adopt(self, data: bytes | None) -> None:
        """Control planes may have seen a higher number, from a registry that is lost: ours goes on above it."""
        self._adopted = True
        if data is None:
            return
        try:
            found = keyspace.decode_models(data)
        except CodecError:
            return
        self._there = {model_id for model_id in (found.serving, found.previous, found.shadow) if model_id}
        if found != _state_of(self._registry.state):
            self._registry.raise_sequence(found.sequence)


def _state_of(state: State) -> ModelsState:
    return ModelsState(
        sequence=state.sequence,
        serving=state.serving,
        previous=state.previous,
        shadow=state.shadow,
        changed_at=state.changed_at,
    )

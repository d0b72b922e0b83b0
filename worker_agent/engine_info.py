"""Who the engine is and where its KV events are, from its discovery answers. Pure: bodies in, values out."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from contract.keyspace import ModelCard

RANKS_MAX = 64
"""More data-parallel ranks than this behind one address are not followed."""


class BadAnswer(ValueError):
    """A discovery answer that is not what vLLM sends."""


@dataclass(frozen=True, slots=True)
class EventEndpoint:
    """Where one data-parallel rank publishes. replay: "" where the engine keeps no buffer."""

    rank: int
    publish: str
    replay: str = ""
    topic: str = ""


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    version: str


class _Source(msgspec.Struct):
    endpoint: str | None = None
    replay_endpoint: str | None = None
    topic: str = ""
    publisher: str = "zmq"
    enable_kv_cache_events: bool = True
    buffer_steps: int = 10_000


_MODELS = msgspec.json.Decoder(_Models)
_VERSION = msgspec.json.Decoder(_Version)
_SOURCES = msgspec.json.Decoder(dict[str, _Source])


def parse_models(body: bytes) -> tuple[ModelCard, ...]:
    """`/v1/models`, base models first. BadAnswer: not a list of models, or an empty one."""
    try:
        models = _MODELS.decode(body).data
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadAnswer(f"/v1/models: {error}") from error
    if not any(model.parent is None for model in models):
        raise BadAnswer("/v1/models names no base model")
    lengths = {model.id: model.max_model_len or 0 for model in models}
    cards = [
        ModelCard(
            name=model.id,
            base=model.parent or model.id,
            root=model.root or model.id,
            max_model_len=model.max_model_len or lengths.get(model.parent or "", 0),
        )
        for model in models
    ]
    return tuple(sorted(cards, key=lambda card: card.base != card.name))


def base_model(models: tuple[ModelCard, ...]) -> ModelCard:
    """The base model under the name that the engine serves first: the root of every block hash."""
    return models[0]


def parse_version(body: bytes) -> str:
    """`/version`; "" where the answer is not one: an engine without a version is still an engine."""
    try:
        return _VERSION.decode(body).version
    except (msgspec.DecodeError, msgspec.ValidationError):
        return ""


def parse_sources(body: bytes, engine_url: str) -> tuple[EventEndpoint, ...]:
    """`/kv_event_sources` (vLLM 0.31+): one endpoint a rank, reachable from here. BadAnswer: not such an answer."""
    try:
        sources = _SOURCES.decode(body)
        ranks = sorted((int(rank), source) for rank, source in sources.items())
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise BadAnswer(f"/kv_event_sources: {error}") from error
    host = urlsplit(engine_url).hostname or "127.0.0.1"
    return tuple(
        EventEndpoint(
            rank=rank,
            publish=reachable(source.endpoint, host),
            replay=reachable(source.replay_endpoint, host) if source.replay_endpoint and source.buffer_steps > 0 else "",
            topic=source.topic,
        )
        for rank, source in ranks[:RANKS_MAX]
        if source.enable_kv_cache_events and source.publisher == "zmq" and source.endpoint
    )


def configured_sources(publish: str, replay: str, ranks: int) -> tuple[EventEndpoint, ...]:
    """Endpoints given by hand for rank 0: vLLM's rank n publishes n ports higher. replay: "" for none."""
    return tuple(
        EventEndpoint(rank=rank, publish=_port_plus(publish, rank), replay=_port_plus(replay, rank) if replay else "")
        for rank in range(min(ranks, RANKS_MAX))
    )


def reachable(endpoint: str, host: str) -> str:
    """An endpoint that the engine binds, as one that another process can connect to: wildcards become `host`."""
    scheme, separator, rest = endpoint.partition("://")
    if scheme != "tcp" or not separator:
        return endpoint
    address, _, port = rest.rpartition(":")
    if address not in ("*", "0.0.0.0", "[::]", "::", ""):
        return endpoint
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"


def _port_plus(endpoint: str, offset: int) -> str:
    if offset == 0:
        return endpoint
    front, _, port = endpoint.rpartition(":")
    return f"{front}:{int(port) + offset}"

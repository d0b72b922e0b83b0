"""What control planes of one fleet say to each other, over a Redis channel (`CHANNEL`, publish and subscribe).

Each tells what it has in flight at every endpoint, and little else: the others add it to what they count themselves. A
message says how things are, not how they changed, so one that is lost is made up for by the next `whole` one, which comes
several times a second; whoever is silent for longer than PEER_S_MAX counts no more. Ages in place of moments: every process has
a clock of its own. New fields go to the end and have defaults; any other change is another channel.
"""

from __future__ import annotations

import msgspec

from contract.keyspace import PREFIX, CodecError

CHANNEL = PREFIX + "replicas"

SAY_S = 0.02
"""At most this often, where something has changed."""
WHOLE_S = 0.1
"""A whole message at least this often while another control plane is heard."""
ALONE_S = 0.5
"""While none is."""
PEER_S_MAX = 0.5
"""What one that is silent for so long had in flight is forgotten."""
GUESSES_BLOCKS_MAX = 8_192
"""Of one message: 64 KB."""


class InFlight(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """At one endpoint, by one control plane. Ages in seconds; -1: nothing is queued, or nothing is active."""

    place: str  # address of the engine, and rank: where it is counted
    active: int
    no_first_byte: int
    prefill_tokens: int
    prefill_pairs: float
    context_tokens: int
    queued_s: float
    moved_s: float
    head_tokens: int
    head_input_tokens: int


class Opened(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A breaker that this control plane opened by what it saw itself. opening: counts them; left_s: of its hold-off; times: in
    a row."""

    place: str
    opening: int
    left_s: float
    times: int
    reason: str
    suspected: bool


class Order(msgspec.Struct, array_like=True, frozen=True, gc=False, order=True):
    """What an operator has set. Of two about one thing the later holds, and at one moment the greater: see `later`."""

    name: str  # POLICY, or DRAIN and a worker
    at_ms: int  # Unix time
    by: str  # the control plane that was told
    value: str


POLICY = "policy"
DRAIN = "drain:"
ORDERS_MAX = 10_000


def later(one: Order, other: Order) -> Order:
    """Whichever of two orders about one thing holds, for whoever compares them and in whatever order."""
    return max(one, other, key=lambda order: (order.at_ms, order.by, order.value))


class Message(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One control plane's word. Fields below `whole` that say "whole only" are empty otherwise, and mean nothing then."""

    replica: str  # unique for the process and start
    sequence: int
    whole: bool  # every endpoint with something in flight is listed; else those that changed
    leaving: bool = False  # its last word
    owners: tuple[str, ...] = ()  # data planes whose streams are open there
    in_flight: tuple[InFlight, ...] = ()
    guesses: tuple[tuple[str, bytes], ...] = ()  # place, and 8 bytes a block: what was sent there since
    opened: tuple[Opened, ...] = ()  # whole only
    doubted: tuple[str, ...] = ()  # whole only: endpoints whose predicted matches do not come true
    orders: tuple[Order, ...] = ()  # whole only
    rates: tuple[tuple[str, tuple[float, ...]], ...] = ()  # whole only: what was learned of each place's speed


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """For the channel."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """CodecError: not a Message."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CodecError(f"word of a control plane: {error}") from error

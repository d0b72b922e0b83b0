"""KV events: the bytes against recorded ones, the sockets against a subscriber."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from emulator.__main__ import Emulator
from emulator.block_pool import Cleared, Origin, Removed, Stored
from emulator.kv_events import EventEncoder, ReplayBuffer, frames
from tests.emulator.conftest import FIXTURES, Launch
from tests.emulator.test_server import completion, post

KV = FIXTURES / "kv_events"


def rows(name: str) -> Iterator[dict[str, Any]]:
    with (KV / f"{name}.jsonl").open() as lines:
        yield from map(json.loads, lines)


def from_map(event: dict[str, Any]) -> Stored | Removed | Cleared:
    """A recorded map event as the engine's own."""
    if event["type"] == "BlockStored":
        keys = [key for key in event["extra_keys"][0] or [] if key != event["lora_name"]]
        parent, tokens = event["parent_block_hash"], array("I", event["token_ids"]).tobytes()
        salt = keys[0] if keys else ""
        origin = Origin(event["lora_name"] or "", salt, event.get("session_id") or "")
        return Stored(tuple(event["block_hashes"]), parent, tokens, origin)
    if event["type"] == "BlockRemoved":
        return Removed(event["block_hashes"][0])
    return Cleared()


def test_recorded_map_frames_are_written_byte_for_byte() -> None:
    encoder = EventEncoder(block_size=32, loras=["sql"])
    count = 0
    for row in rows("v032_block32"):
        topic, sequence, payload = (bytes.fromhex(frame) for frame in row["frames"])
        unix_s, events, _ = msgspec.msgpack.decode(payload)
        ours = encoder.encode([from_map(event) for event in events], unix_s)
        assert frames(b"kv-events", int.from_bytes(sequence, "big"), ours) == [topic, sequence, payload]
        count += len(events)
    assert count > 50


@pytest.mark.parametrize("event", ["BlockStored", "BlockRemoved", "AllBlocksCleared"])
@pytest.mark.parametrize(
    ("version", "format"), [("0.22.1", "array"), ("0.23.0", "array"), ("0.24.0", "map"), ("0.32.0", "map")]
)
def test_each_generation_is_written_as_its_own_structures_encode(version: str, format: str, event: str) -> None:
    row = next(row for row in rows("by_version") if (row["vllm"], row["event"]) == (version, event))
    stored = Stored((10**18 + 1,), None, array("I", range(300, 316)).tobytes())
    ours = {"BlockStored": stored, "BlockRemoved": Removed(10**18 + 1), "AllBlocksCleared": Cleared()}[event]
    assert EventEncoder(block_size=16, format=format).encode([ours], 1795211000.25).hex() == row["payload"]


def test_the_salt_marks_the_first_block_of_a_sequence_and_the_adapter_all() -> None:
    encoder = EventEncoder(block_size=1, loras=["sql"])
    first = Stored((1, 2), None, array("I", (5, 6)).tobytes(), Origin("sql", "tenant"))
    later = Stored((3,), 2, array("I", (7,)).tobytes(), Origin("sql", "tenant"))
    _, events, _ = msgspec.msgpack.decode(encoder.encode([first, later], 0.0))
    assert [event["extra_keys"] for event in events] == [[["sql", "tenant"], ["sql"]], [["sql"]]]


def test_the_buffer_forgets_the_oldest_batches_silently() -> None:
    buffer = ReplayBuffer(3)
    for number in range(5):
        assert buffer.append(bytes([number])) == number
    assert list(buffer.since(0)) == [(2, b"\2"), (3, b"\3"), (4, b"\4")]
    assert list(buffer.since(9)) == []


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="protobuf"):
        EventEncoder(block_size=16, format="protobuf")


@pytest.fixture
def context() -> zmq.asyncio.Context:
    return zmq.asyncio.Context.instance()


async def source(emulator: Emulator) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{emulator.url}/kv_event_sources") as response:
        return (await response.json())["0"]  # type: ignore[no-any-return]


async def subscribe(context: zmq.asyncio.Context, emulator: Emulator) -> tuple[zmq.asyncio.Socket, int]:
    """A subscriber that is known to receive, and the sequence of the batch that showed it."""
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(b"kv-events")
    subscriber.connect((await source(emulator))["endpoint"])
    for number in range(100):
        await post(emulator, "/v1/completions", completion(1, prompt=[4_000 + number] * 33))
        if await subscriber.poll(50):
            return subscriber, (await receive(subscriber))[0]
    raise AssertionError("the subscriber never received anything")


async def receive(subscriber: zmq.asyncio.Socket) -> tuple[int, list[dict[str, Any]]]:
    topic, sequence, payload = await asyncio.wait_for(subscriber.recv_multipart(), 5)
    assert topic == b"kv-events"
    return int.from_bytes(sequence, "big"), msgspec.msgpack.decode(payload)[1]


async def replay(context: zmq.asyncio.Context, emulator: Emulator, start: int) -> list[int]:
    """Sequences of a replay, the end marker not included."""
    dealer = context.socket(zmq.DEALER)
    dealer.connect((await source(emulator))["replay_endpoint"])
    await dealer.send_multipart([b"", start.to_bytes(8, "big")])
    sequences = []
    while True:
        empty, topic, sequence, payload = await asyncio.wait_for(dealer.recv_multipart(), 5)
        assert empty == b""
        if sequence == b"\xff" * 8:
            assert (topic, payload) == (b"", b"")
            return sequences
        assert topic == b"kv-events"
        sequences.append(int.from_bytes(sequence, "big"))


async def test_a_subscriber_gets_the_prompts_blocks_and_a_clear_only_with_the_next_step(
    launch: Launch, context: zmq.asyncio.Context
) -> None:
    emulator = await launch()
    subscriber, last = await subscribe(context, emulator)
    await post(emulator, "/v1/completions", completion(1))
    sequence, events = await receive(subscriber)
    assert sequence == last + 1
    assert events[0]["token_ids"] == [300 + number for number in range(96)]
    assert len(events[0]["block_hashes"]) == 3
    await post(emulator, "/reset_prefix_cache", {})
    assert not await subscriber.poll(20)
    await post(emulator, "/v1/completions", completion(1))
    _, events = await receive(subscriber)
    assert [event["type"] for event in events] == ["AllBlocksCleared", "BlockStored"]


async def test_dropped_batches_leave_a_hole_that_a_replay_fills(launch: Launch, context: zmq.asyncio.Context) -> None:
    emulator = await launch()
    subscriber, last = await subscribe(context, emulator)
    await post(emulator, "/emulator/faults", {"kind": "drop_kv_events", "count": 2})
    for number in range(3):
        await post(emulator, "/v1/completions", completion(1, prompt=[number] * 40))
    assert (await receive(subscriber))[0] == last + 3
    assert await replay(context, emulator, last + 1) == [last + 1, last + 2, last + 3]
    assert await replay(context, emulator, last + 100) == []


async def test_hashes_differ_from_one_start_to_the_next_unless_seeded(launch: Launch, context: zmq.asyncio.Context) -> None:
    seen = []
    for settings in ({}, {}, {"hash_seed": 7}, {"hash_seed": 7}):
        emulator = await launch(**settings)
        subscriber, _ = await subscribe(context, emulator)
        await post(emulator, "/v1/completions", completion(1))
        seen.append(tuple((await receive(subscriber))[1][0]["block_hashes"]))
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]

"""Stores that say nothing but tokens take a way of their own, many at once: it leads where the general way leads."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.keyspace import Tier
from tests.worker_agent.conftest import payloads
from worker_agent.block_set import BlockSet
from worker_agent.kv_events import NOT_PLAIN_PAYLOADS, PLAIN, STORED, Batch, Decoder

SIZE = 4
seeds = st.integers(0, 2**32)


def engine_steps(chance: random.Random) -> list[list[dict[str, Any]]]:
    """Payloads of an engine whose prompts come from a small tree: one-block stores side by side, and everything else."""
    steps = [[event for _ in range(chance.randint(1, 3)) for event in _run(chance)] for _ in range(chance.randint(1, 8))]
    if chance.random() < 0.3:  # an engine that does not say where its blocks are
        for event in chain.from_iterable(steps):
            if event.get("medium") == "GPU":
                event["medium"] = None
    if chance.random() < 0.3:  # one with two groups, of which either may come first
        for events in steps:
            group = chance.randrange(2)
            for event in events:
                if event.get("group_idx") == 0:
                    event["group_idx"] = group
    return steps


def _run(chance: random.Random) -> list[dict[str, Any]]:
    kind = chance.random()
    if kind < 0.6:
        return [_store(chance) for _ in range(chance.randint(1, 16))]
    if kind < 0.95:
        return [_removal(chance) for _ in range(chance.randint(1, 8))]
    return [{"type": "AllBlocksCleared"}]


def _name(path: tuple[int, ...]) -> int | bytes:
    """The engine's name is a fact about content. Some are bytes here, as engines that are told so send all."""
    number = hash(path) & (2**64 - 1)
    return number if number % 5 else number.to_bytes(8, "big")


def _path(chance: random.Random) -> tuple[int, ...]:
    return tuple(chance.randrange(3) for _ in range(chance.randint(1, 4)))


def _store(chance: random.Random) -> dict[str, Any]:
    """Mostly one block; now and then anything an engine may say, and what none should."""
    path = _path(chance)
    first = 0 if chance.random() < 0.2 else len(path) - 1
    held = [path[: end + 1] for end in range(first, len(path))]
    event = {
        "type": "BlockStored",
        "block_hashes": [_name(one) for one in held],
        "parent_block_hash": _name(path[:first]) if first else None,
        "token_ids": [one[-1] for one in held for _ in range(SIZE)],
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(held),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }
    odd: dict[str, list[Any]] = {
        "token_ids": [[], [1], [1] * (SIZE + 1), [-1] * SIZE, [2**32] * SIZE],
        "block_size": [2 * SIZE, 0],
        "lora_name": ["sql"],
        "extra_keys": [[["salt"]] * len(held), [], None],
        "group_idx": [None, 1],
        "kv_cache_spec_kind": [None, "sliding_window", "mla_attention"],
        "medium": ["CPU", "gpu"],
    }
    if chance.random() < 0.08:
        field = chance.choice(sorted(odd))
        event[field] = chance.choice(odd[field])
        if field in ("lora_name", "extra_keys"):  # other content, another name
            event["block_hashes"] = [_name((*one, 9)) for one in held]
    return event


def _removal(chance: random.Random) -> dict[str, Any]:
    gone = [_name(_path(chance)) for _ in range(chance.choice([1, 1, 1, 2]))]
    medium, group = chance.choice(["GPU"] * 6 + ["CPU", None]), chance.choice([0] * 8 + [1, None])
    return {"type": "BlockRemoved", "block_hashes": gone, "medium": medium, "group_idx": group}


def as_array(event: dict[str, Any]) -> list[Any]:
    """The wire of vLLM before 0.24."""
    return list(event.values())


def plain_or_not(steps: list[list[Any]]) -> tuple[list[Batch], list[Batch]]:
    """The same payloads as the plain decoders have them, and as the general ones do."""
    packed = [msgspec.msgpack.encode([float(number), events, 0]) for number, events in enumerate(steps)]
    plain: list[Batch] = []
    general: list[Batch] = []
    for payload in packed:
        # Each by a decoder of its own: what one was not says nothing about the next.
        plain.append(Decoder().decode(payload))
        patient = Decoder()
        patient._not_plain = NOT_PLAIN_PAYLOADS
        general.append(patient.decode(payload))
    assert not any(isinstance(event, PLAIN) for batch in general for event in batch.events)
    return plain, general


def begun(capacity: int) -> BlockSet:
    made = BlockSet("m", SIZE, capacity)
    made.begin(0, 0.0)
    made.take()
    return made


def view(block_set: BlockSet) -> dict[str, Any]:
    """Everything that can be seen of a block set, and what decides what will be seen."""
    rank = block_set._ranks[0]
    changes = sorted((change.tier, change.cleared, sorted(change.added), sorted(change.removed)) for change in block_set.take())
    return {
        "held": {tier: block_set.held(0, tier) for tier in Tier},
        "copies": {tier: (shelf.total, shelf.extra) for tier, shelf in rank.shelves.items() if shelf.total},
        "names": rank.names,
        "exact": block_set.exact,
        "group": rank.group,
        "ignored": block_set.ignored,
        "foreign": block_set.foreign_block_size,
        "changes": changes,
    }


@settings(max_examples=300, deadline=None)
@given(seed=seeds, capacity=st.sampled_from([0, 0, 12]), arrays=st.booleans())
def test_plain_stores_leave_what_the_general_way_leaves(seed: int, capacity: int, arrays: bool) -> None:
    steps = engine_steps(random.Random(seed))
    wire = [[as_array(event) for event in events] for events in steps] if arrays else steps
    plain, general = begun(capacity), begun(capacity)
    for one, other in zip(*plain_or_not(wire), strict=True):
        plain.apply(0, one)
        general.apply(0, other)
        assert view(plain) == view(general)


@settings(max_examples=200, deadline=None)
@given(seed=seeds)
def test_payloads_applied_together_leave_what_they_leave_one_by_one(seed: int) -> None:
    steps = engine_steps(random.Random(seed))
    together, singly = begun(0), begun(0)
    batches, _ = plain_or_not(steps)
    together.apply(0, *batches)
    for batch in batches:
        singly.apply(0, batch)
    assert view(together) == view(singly)


@pytest.mark.parametrize("name", ["v032_block32", "v032_block32_bytes", "v032_dp2_rank1"])
def test_what_a_real_engine_sends_is_plain_where_it_has_no_adapter_and_no_salt(name: str) -> None:
    decoder = Decoder()
    plain = special = 0
    for _, payload in payloads(name):
        decoder._not_plain = 0
        events = [event for event in decoder.decode(payload).events if isinstance(event, STORED)]
        if any(event.lora_name or any(event.extra_keys or []) for event in events):
            special += 1
            assert not any(isinstance(event, PLAIN) for event in events)
        elif events:
            plain += 1
            assert all(isinstance(event, PLAIN) for event in events)
    assert plain > 3


def test_a_chain_of_blocks_in_one_payload_is_followed_whatever_its_length() -> None:
    """Each block's parent is named by the event before it."""
    events = [
        {
            "type": "BlockStored",
            "block_hashes": [number],
            "parent_block_hash": number - 1 or None,
            "token_ids": [number] * SIZE,
            "block_size": SIZE,
        }
        for number in range(1, 50)
    ]
    plain, general = begun(0), begun(0)
    (one,), (other,) = plain_or_not([events])
    plain.apply(0, one)
    general.apply(0, other)
    assert plain.blocks == 49
    assert view(plain) == view(general)


def test_after_a_payload_with_an_adapter_plain_ones_are_found_again() -> None:
    store = {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1], "block_size": 1}
    adapter = msgspec.msgpack.encode([1.0, [store | {"lora_name": "sql"}], 0])
    plain = msgspec.msgpack.encode([1.0, [store], 0])
    decoder = Decoder()
    kinds = [isinstance(decoder.decode(payload).events[0], PLAIN) for payload in [plain, adapter] + [plain] * 20]
    assert kinds == [True, False] + [False] * NOT_PLAIN_PAYLOADS + [True] * (20 - NOT_PLAIN_PAYLOADS)

"""The whole agent: a fake engine's real sockets on one side, a real Redis on the other."""

from __future__ import annotations

import asyncio

import pytest

from contract import keyspace
from contract.keyspace import EngineState, Tier
from headway.embedded_redis import RedisServer
from tests.waiting import until
from tests.worker_agent.conftest import Rig, hashes, prompt


async def test_a_worker_is_registered_as_its_engine_describes_itself(rig: Rig) -> None:
    rig.engine.adapters.append("sql")
    await rig.start(accelerator="h100", advertise_url="http://10.0.0.7:8000/")
    record = await rig.record()
    assert record is not None
    assert (record.worker, record.url, record.accelerator) == ("w1", "http://10.0.0.7:8000", "h100")
    assert (record.block_size, record.cache_blocks, record.engine_version) == (4, 1000, "0.32.0")
    assert record.tokenizer == "models/tiny"
    assert record.sends_kv_events
    assert [(card.name, card.base, card.max_model_len) for card in record.models] == [
        ("tiny", "tiny", 4096),
        ("sql", "tiny", 4096),
    ]


async def test_reports_carry_the_engines_figures_and_are_numbered(rig: Rig) -> None:
    rig.engine.figures |= {"running": 3, "waiting": 5, "generation_tokens": 17}
    await rig.start()
    report = await rig.reported(lambda report: report.sequence >= 3, "three reports")
    assert (report.worker, report.state) == ("w1", EngineState.READY)
    assert (report.running, report.waiting, report.generation_tokens, report.kv_usage) == (3, 5, 17, 0.25)
    record = await rig.record()
    assert record is not None
    assert report.epoch == record.epoch


async def test_a_killed_agent_leaves_by_its_ttl(rig: Rig) -> None:
    await rig.start(ttl_ms=150)
    await rig.registered()
    await rig.kill()

    async def gone() -> bool:
        return await rig.record() is None

    await until(gone, "expiry of the registration")


async def test_a_leaving_agent_says_so_and_takes_its_keys_away(rig: Rig) -> None:
    agent = await rig.start()
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(1, 3)))
    await rig.reaches(rig.reader(), hashes(prompt(1, 3)))
    for task in rig.tasks:
        task.cancel()
    await agent.leave()
    report = await rig.report()
    assert report is not None
    assert report.state == EngineState.LEAVING
    assert await rig.client.keys("headway:1:*") == [keyspace.REPORTS.encode()]


async def test_stored_and_removed_blocks_reach_a_reader(rig: Rig) -> None:
    await rig.start()
    engine, reader = rig.engine, rig.reader()
    tokens = prompt(1, 6)
    names = engine.names(tokens)
    await engine.ranks[0].send(engine.stored(tokens[:16]))
    await engine.ranks[0].send(engine.stored(tokens[16:], parent=names[3]))
    await rig.reaches(reader, hashes(tokens))
    await engine.ranks[0].send(engine.removed(names[5]), engine.stored(prompt(2, 2), lora_name="sql"))
    await rig.reaches(reader, hashes(tokens[:20]) | hashes(prompt(2, 2), lora="sql"))
    await engine.ranks[0].send({"type": "AllBlocksCleared"})
    await rig.reaches(reader, set())
    report = await rig.report()
    assert report is not None
    assert report.blocks_exact


async def test_an_agent_that_starts_late_learns_what_was_published_before(rig: Rig) -> None:
    for number in range(5):
        await rig.engine.ranks[0].send(rig.engine.stored(prompt(number, 2)))
    await rig.start()
    await rig.reaches(rig.reader(), set().union(*(hashes(prompt(number, 2)) for number in range(5))))
    await rig.reported(lambda report: report.blocks_exact, "an exact view")


async def test_a_lost_payload_is_replayed(rig: Rig) -> None:
    await rig.start()
    rank, reader = rig.engine.ranks[0], rig.reader()
    await rank.subscribed()
    await rank.send(rig.engine.stored(prompt(1, 2)))
    await rank.send(rig.engine.stored(prompt(2, 2)), lost=True)
    await rank.send(rig.engine.stored(prompt(3, 2)))
    await rig.reaches(reader, hashes(prompt(1, 2)) | hashes(prompt(2, 2)) | hashes(prompt(3, 2)))
    report = await rig.reported(lambda report: report.blocks_exact, "an exact view")
    assert report.epoch == reader.epoch == 100


async def test_a_lost_last_payload_is_found_without_another_event(rig: Rig) -> None:
    await rig.start()
    rank = rig.engine.ranks[0]
    await rank.subscribed()
    await rank.send(rig.engine.stored(prompt(1, 2)))
    await rank.send(rig.engine.stored(prompt(2, 2)), lost=True)
    await rig.reaches(rig.reader(), hashes(prompt(1, 2)) | hashes(prompt(2, 2)))


async def test_what_no_replay_can_fill_voids_the_view_and_says_so(forgetful_rig: Rig) -> None:
    rig = forgetful_rig
    await rig.start()
    rank, reader = rig.engine.ranks[0], rig.reader()
    await rank.subscribed()
    await rank.send(rig.engine.stored(prompt(1, 2)))
    await rig.reaches(reader, hashes(prompt(1, 2)))
    for number in range(2, 6):
        await rank.send(rig.engine.stored(prompt(number, 2)), lost=True)
    await rank.send(rig.engine.stored(prompt(6, 2)))
    await rig.reaches(reader, hashes(prompt(5, 2)) | hashes(prompt(6, 2)))
    await rig.reported(lambda report: not report.blocks_exact, "a view that is not exact")
    await rank.send({"type": "AllBlocksCleared"}, rig.engine.stored(prompt(7, 1)))
    await rig.reaches(reader, hashes(prompt(7, 1)))
    await rig.reported(lambda report: report.blocks_exact, "exact again after a clear")


async def test_a_restarted_engine_begins_a_new_epoch_with_an_empty_set(rig: Rig) -> None:
    await rig.start()
    engine, reader = rig.engine, rig.reader()
    await engine.ranks[0].send(engine.stored(prompt(1, 8)))
    await rig.reaches(reader, hashes(prompt(1, 8)), epoch=100)
    await engine.stop()
    await rig.reported(lambda report: report.state == EngineState.UNREACHABLE, "an unreachable engine")
    engine.forget()
    for rank in engine.ranks:
        rank.open()
    await engine.start()
    report = await rig.reported(lambda report: report.state == EngineState.READY, "an engine that is back")
    assert report.epoch > 100, "READY was reported in the old epoch"
    await engine.ranks[0].subscribed()
    await engine.ranks[0].send(engine.stored(prompt(2, 3)))
    await rig.reaches(reader, hashes(prompt(2, 3)))
    assert reader.epoch > 100
    await rig.reported(lambda report: report.blocks_exact, "an exact view")


@pytest.mark.parametrize("replayed", [True, False], ids=["that has replayed before", "that never has"])
async def test_a_restart_is_one_epoch_though_its_events_come_before_its_figures(rig: Rig, replayed: bool) -> None:
    """As real engines start: event sockets with the core, the HTTP server when the model is loaded."""
    engine, rank, reader = rig.engine, rig.engine.ranks[0], rig.reader()
    if replayed:
        await rank.send(engine.stored(prompt(1, 8)))
    agent = await rig.start()
    epochs = [100]
    agent._new_epoch = lambda: epochs.append(epochs[-1] + 1) or epochs[-1]  # type: ignore[func-returns-value]
    await rank.subscribed()
    if not replayed:
        await rank.send(engine.stored(prompt(1, 8)))
    await rig.reaches(reader, hashes(prompt(1, 8)), epoch=100)
    await engine.stop()
    await rig.reported(lambda report: report.state == EngineState.UNREACHABLE, "an unreachable engine")
    engine.forget()
    rank.open()
    await rig.reaches(reader, set(), epoch=100)
    await rank.subscribed()
    await rank.send(engine.stored(prompt(2, 2)))
    await rig.reaches(reader, hashes(prompt(2, 2)), epoch=100)
    await engine.start()
    report = await rig.reported(lambda report: report.state == EngineState.READY, "an engine that is back")
    assert report.epoch == 101, "READY was reported in the old epoch"
    await rank.send(engine.stored(prompt(3, 2)))
    await rig.reaches(reader, hashes(prompt(2, 2)) | hashes(prompt(3, 2)), epoch=101)
    await rig.reported(lambda report: report.blocks_exact, "an exact view")
    assert epochs == [100, 101]


async def test_an_engine_whose_figures_never_left_begins_its_epoch_with_its_events(rig: Rig) -> None:
    """Its figures were away for a moment and are the same, its events began anew."""
    engine, rank, reader = rig.engine, rig.engine.ranks[0], rig.reader()
    await rank.send(engine.stored(prompt(1, 8)))
    await rig.start()
    await rank.subscribed()
    await rig.reaches(reader, hashes(prompt(1, 8)), epoch=100)
    start = engine.figures["process_start"]
    await engine.stop()
    await rig.reported(lambda report: report.state == EngineState.UNREACHABLE, "an unreachable engine")
    engine.forget()
    engine.figures |= {"process_start": start, "prompt_tokens": 7}
    rank.open()
    await rig.reaches(reader, set(), epoch=100)
    await engine.start()
    report = await rig.reported(lambda report: report.state == EngineState.READY, "an engine that is back")
    assert report.epoch == 101
    await rank.subscribed()
    await rank.send(engine.stored(prompt(2, 2)))
    await rig.reaches(reader, hashes(prompt(2, 2)), epoch=101)


async def test_events_alone_betray_an_engine_that_restarted_behind_the_same_start_time(rig: Rig) -> None:
    await rig.start()
    engine, reader = rig.engine, rig.reader()
    rank = engine.ranks[0]
    await rank.subscribed()
    for number in range(4):
        await rank.send(engine.stored(prompt(number, 1)))
    await rig.reaches(reader, set().union(*(hashes(prompt(number, 1)) for number in range(4))))
    start = engine.figures["process_start"]
    engine.forget()
    engine.figures |= {"process_start": start, "prompt_tokens": 7}
    for number in range(10, 16):  # beyond the number that was seen last: only the payload's bytes tell
        await rank.send(engine.stored(prompt(number, 1)), lost=number < 15)
    await rig.reaches(reader, set().union(*(hashes(prompt(number, 1)) for number in range(10, 16))))
    assert reader.epoch == 101


async def test_an_engine_without_events_is_registered_as_one(rig: Rig) -> None:
    rig.engine.sends_events = False
    await rig.start()
    record = await rig.record()
    assert record is not None
    assert not record.sends_kv_events
    assert await rig.client.exists(keyspace.snapshot_key("w1")) == 0


async def test_event_endpoints_given_by_hand_win(rig: Rig) -> None:
    rank = rig.engine.ranks[0]
    rig.engine.sends_events = False
    await rank.send(rig.engine.stored(prompt(1, 2)))
    await rig.start(kv_events=f"tcp://127.0.0.1:{rank.publish_port}", kv_replay=f"tcp://127.0.0.1:{rank.replay_port}")
    await rig.reaches(rig.reader(), hashes(prompt(1, 2)))


async def test_sick_and_sleeping_engines_are_reported_as_such(rig: Rig) -> None:
    await rig.start()
    engine, reader = rig.engine, rig.reader()
    await engine.ranks[0].send(engine.stored(prompt(1, 2)))
    await rig.reaches(reader, hashes(prompt(1, 2)))
    engine.health_status = 503
    await rig.reported(lambda report: report.state == EngineState.UNHEALTHY, "an unhealthy engine")
    engine.health_status = 200
    await rig.reported(lambda report: report.state == EngineState.READY, "a healthy engine")
    engine.figures["awake"] = 0.0
    await rig.reported(lambda report: report.state == EngineState.SLEEPING, "a sleeping engine")
    await rig.reaches(reader, set())


async def test_a_slow_metrics_page_makes_the_figures_old_and_the_worker_no_less_alive(rig: Rig) -> None:
    rig.engine.figures["running"] = 3
    await rig.start(ttl_ms=300)
    rig.engine.metrics_gate.clear()
    report = await rig.reported(lambda report: report.scrape_age_s > 0.5, "figures of half a second ago")
    assert (report.state, report.running) == (EngineState.READY, 3)
    await rig.registered()  # it is renewed all the while; a machine that stood still lets it lapse for a moment
    rig.engine.metrics_gate.set()
    await rig.reported(lambda report: report.scrape_age_s < 0.2, "fresh figures")


async def test_malformed_frames_are_counted_and_end_nothing(rig: Rig) -> None:
    agent = await rig.start()
    rank, reader = rig.engine.ranks[0], rig.reader()
    await rank.subscribed()
    await rank.send_raw(b"kv-events", b"short")
    await rank.send_raw(b"kv-events", b"short", b"x")
    await rank.send(rig.engine.stored(prompt(1, 1)))
    for bad in (b"\xc1", b"\x93\x01", b"", b"\x81\xa1a\x01"):
        await rank.send(payload=bad)
    await rank.send(rig.engine.stored(prompt(2, 1)))
    await rig.reaches(reader, hashes(prompt(2, 1)))
    await rig.reported(lambda report: not report.blocks_exact, "a view that is not exact")
    assert agent._follower is not None
    assert sum(agent._follower.malformed.values()) == 4


async def test_ranks_and_tiers_are_kept_apart(rig_of_two_ranks: Rig) -> None:
    rig = rig_of_two_ranks
    await rig.start()
    engine, reader = rig.engine, rig.reader()
    one, two = prompt(1, 3), prompt(2, 2)
    await engine.ranks[0].send(engine.stored(one))
    await engine.ranks[1].send(engine.stored(two))
    # A copy to CPU memory names its blocks and does not repeat the tokens.
    await engine.ranks[0].send(engine.stored(one, medium="CPU") | {"token_ids": []}, engine.removed(engine.names(one)[2]))
    expected = {(0, Tier.GPU): hashes(one[:8]), (0, Tier.CPU): hashes(one), (1, Tier.GPU): hashes(two)}

    async def there() -> bool:
        await reader.read()
        return {key: held for key, held in reader.blocks.items() if held} == expected

    await until(there, "three shelves")
    late = rig.reader()
    await late.ask()

    async def answered() -> bool:
        return await rig.client.exists(keyspace.resync_key("w1")) == 0

    await until(answered, "an answer to the resync")
    await late.read()
    assert {key: held for key, held in late.blocks.items() if held} == expected


async def test_an_adapter_that_is_loaded_later_joins_the_record(rig: Rig) -> None:
    agent = await rig.start()
    rig.engine.adapters.append("late")
    agent._models_at = 0.0

    async def there() -> bool:
        record = await rig.record()
        return record is not None and [card.name for card in record.models] == ["tiny", "late"]

    await until(there, "the adapter in the record")


async def test_a_block_size_that_events_contradict_is_corrected(rig: Rig) -> None:
    rig.engine.figures["block_size"] = 16
    await rig.start()
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(1, 3)))
    await rig.reaches(rig.reader(), hashes(prompt(1, 3)))

    async def corrected() -> bool:
        record = await rig.record()
        return record is not None and record.block_size == 4

    await until(corrected, "the record says so, too")


async def test_a_flushed_redis_is_filled_again(rig: Rig) -> None:
    await rig.start()
    reader = rig.reader()
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(1, 4)))
    await rig.reaches(reader, hashes(prompt(1, 4)))
    await rig.client.flushall()
    late = rig.reader()
    await rig.reaches(late, hashes(prompt(1, 4)))
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(2, 1)))
    expected = hashes(prompt(1, 4)) | hashes(prompt(2, 1))
    await rig.reaches(late, expected)
    await rig.reaches(reader, expected)
    assert await rig.record() is not None


async def test_a_restarted_redis_is_filled_again_with_what_happened_meanwhile(
    rig_on_own_redis: Rig, own_redis: RedisServer
) -> None:
    rig = rig_on_own_redis
    agent = await rig.start()
    engine = rig.engine
    await engine.ranks[0].send(engine.stored(prompt(1, 4)))
    await rig.reaches(rig.reader(), hashes(prompt(1, 4)))
    await asyncio.to_thread(own_redis.kill)
    await engine.ranks[0].send(engine.stored(prompt(2, 4)), engine.removed(engine.names(prompt(1, 4))[3]))

    async def noticed() -> bool:
        return not agent._publisher.connected

    await until(noticed, "the loss of redis")
    await asyncio.to_thread(own_redis.start)
    await rig.reaches(rig.reader(), hashes(prompt(1, 3)) | hashes(prompt(2, 4)), epoch=100)
    assert await rig.record() is not None


async def test_a_new_agent_on_the_same_name_supersedes_what_the_killed_one_left(rig: Rig) -> None:
    await rig.start()
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(1, 4)))
    reader = rig.reader()
    await rig.reaches(reader, hashes(prompt(1, 4)), epoch=100)
    await rig.kill()
    rig.engine.ranks[0].buffer.clear()
    rig.engine.ranks[0].sequence = 0
    agent = await rig.start_unregistered()
    agent._new_epoch = lambda: 500
    await rig.engine.ranks[0].send(rig.engine.stored(prompt(2, 2)))
    await rig.reaches(reader, hashes(prompt(2, 2)), epoch=500)

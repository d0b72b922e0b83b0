"""Discovery answers of a real vLLM."""

from __future__ import annotations

import pytest

from tests.worker_agent.conftest import FIXTURES
from worker_agent.engine_info import (
    BadAnswer,
    EventEndpoint,
    base_model,
    configured_sources,
    parse_models,
    parse_sources,
    parse_version,
    reachable,
)


def body(name: str) -> bytes:
    return (FIXTURES / "http" / f"{name}.json").read_bytes()


def test_adapters_know_their_base_and_take_its_length() -> None:
    models = parse_models(body("get_v1_models"))
    assert [(card.name, card.base, card.root, card.max_model_len) for card in models] == [
        ("tiny", "tiny", "models/tiny", 4096),
        ("sql", "tiny", "models/tiny-lora-sql", 4096),
    ]
    assert base_model(models).name == "tiny"


def test_version_is_read_and_its_absence_is_no_error() -> None:
    assert parse_version(body("get_version")) == "0.32.0"
    assert parse_version(b"") == ""


def test_event_sources_are_reachable_from_here() -> None:
    assert parse_sources(body("get_kv_event_sources"), "http://gpu7:8000") == (
        EventEndpoint(0, "tcp://gpu7:18001", "tcp://gpu7:19001", "kv-events"),
    )


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://*:5557", "tcp://h:5557"),
        ("tcp://0.0.0.0:5557", "tcp://h:5557"),
        ("tcp://[::]:5557", "tcp://h:5557"),
        ("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5557"),
        ("ipc:///tmp/x", "ipc:///tmp/x"),
    ],
)
def test_wildcard_addresses_become_the_engines_host(endpoint: str, expected: str) -> None:
    assert reachable(endpoint, "h") == expected


def test_disabled_and_foreign_publishers_are_no_sources() -> None:
    assert parse_sources(b'{"0":{"enable_kv_cache_events":false,"endpoint":"tcp://*:1"}}', "http://h") == ()
    assert parse_sources(b'{"0":{"publisher":"null","endpoint":"tcp://*:1"}}', "http://h") == ()
    (source,) = parse_sources(b'{"0":{"endpoint":"tcp://*:1","replay_endpoint":"tcp://*:2","buffer_steps":0}}', "http://h")
    assert source.replay == "", "an empty buffer is no replay"


def test_ranks_given_by_hand_count_ports_upwards() -> None:
    assert [(one.publish, one.replay) for one in configured_sources("tcp://h:10", "tcp://h:20", 2)] == [
        ("tcp://h:10", "tcp://h:20"),
        ("tcp://h:11", "tcp://h:21"),
    ]


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"data":[]}', b'{"data":[{"id":"x","parent":"y"}]}', b"\xff"])
def test_an_answer_that_is_not_a_list_of_models_is_refused(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_models(answer)


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"a":{}}', b'{"0":{"endpoint":5}}'])
def test_an_answer_that_names_no_sources_is_refused(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_sources(answer, "http://h")

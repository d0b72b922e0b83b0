"""Tokens of streams whose engine was not asked for their number: counted as it would have said them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dataplane.client import Client, ask, chat, request
from tests.dataplane.conftest import AddKey, StartProxy
from tests.fakes.backend import (
    LAST_CHUNK,
    STREAM_HEAD,
    Backend,
    Seen,
    Step,
    Wire,
    chunk,
    delta,
    event,
    hangs,
    raw,
    stream_bytes,
    usage,
)
from tests.fakes.control import Control

TEXTS = ["a", "b", "c", "d"]


def as_vllm_sends_it(texts: list[str]) -> list[bytes]:
    """A role by itself, a token in each event, the finish with the last one."""
    *amid, last = texts
    return [event(delta("", role="assistant")), *(event(delta(text)) for text in amid), event(delta(last, finish="length"))]


def one_write_each(events: list[bytes]) -> Step:
    async def step(seen: Seen, wire: Wire) -> None:
        await wire.send(STREAM_HEAD)
        for each in events:
            await wire.send(chunk(each))
        await wire.send(LAST_CHUNK)

    return step


EVENTS = [*as_vllm_sends_it(TEXTS), event("[DONE]")]
WAYS = {
    "one write each": one_write_each(EVENTS),
    "one write": raw(STREAM_HEAD + stream_bytes(EVENTS)),
    "torn": raw(STREAM_HEAD + stream_bytes(EVENTS), bytewise=True),
    "lines end with CRLF": one_write_each([each.replace(b"\n", b"\r\n") for each in EVENTS]),
    "without a role": one_write_each(EVENTS[1:]),
    "said": one_write_each([*EVENTS[:-1], event({"choices": [], "usage": usage(9, len(TEXTS), 0)}), EVENTS[-1]]),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_streams_tokens_are_those_that_its_engine_counts(
    start_proxy: StartProxy, backend: Backend, control: Control, tmp_path: Path, way: str, version: str
) -> None:
    backend.script(WAYS[way])
    control.serve("m", backend.url)
    log = tmp_path / "access"
    proxy = await start_proxy(control=control, access_log=str(log))
    assert (await ask(proxy.port, request(chat(stream=True), version=version))).status == 200
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].output_tokens == len(TEXTS)
    await proxy.app.stop()
    assert [json.loads(line)["output_tokens"] for line in log.read_bytes().splitlines()] == [len(TEXTS)]


async def test_a_role_is_no_token_of_a_key(
    start_proxy: StartProxy, backend: Backend, control: Control, keys_file: Path, add_key: AddKey
) -> None:
    token = {"Authorization": f"Bearer {add_key(tokens_per_minute=10_000)}"}
    control.serve("m", backend.url)
    proxy = await start_proxy(control=control, keys_file=str(keys_file))
    backend.script(raw(STREAM_HEAD + stream_bytes(EVENTS)))
    await ask(proxy.port, request(chat(stream=True), headers=token))
    assert proxy.count("tenant_tokens", "acme", "output") == len(TEXTS)
    backend.script(hangs(STREAM_HEAD + b"".join(map(chunk, EVENTS[:3]))))
    client = await Client.connect(proxy.port)
    await client.send(request(chat(stream=True), headers=token))
    await client.reader.readuntil(b'"b"')
    client.reset()
    await control.until(lambda control: len(control.outcomes) == 2)
    assert control.outcomes[1].output_tokens == 2
    assert proxy.count("tenant_tokens", "acme", "output") == len(TEXTS) + 2

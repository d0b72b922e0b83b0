"""What clients see over real sockets, the `openai` package among them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import pytest

from emulator import server
from emulator.__main__ import Emulator
from tests.emulator.captures import Answer, exchange, parse
from tests.emulator.conftest import Launch
from tests.waiting import until

PROMPT = [300 + number for number in range(100)]


def raw_post(path: str, body: dict[str, Any], *, version: str = "1.1") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def completion(max_tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True} | more


@asynccontextmanager
async def connection(emulator: Emulator) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(emulator.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def post(emulator: Emulator, path: str, body: dict[str, Any]) -> Answer:
    return await exchange(emulator.url, raw_post(path, body))


async def fault(emulator: Emulator, **body: Any) -> None:
    assert (await post(emulator, "/emulator/faults", body)).status == 200


@pytest.fixture
async def client(launch: Launch) -> AsyncIterator[openai.AsyncOpenAI]:
    emulator = await launch()
    async with openai.AsyncOpenAI(base_url=f"{emulator.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_openai_client_streams_a_chat_and_reads_its_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Name three sorting algorithms."}],
        max_completion_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert len(text.split()) == 6
    assert chunks[-2].choices[0].finish_reason == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 6
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


async def test_the_openai_client_gets_typed_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await client.completions.create(model="tiny", prompt="hi", temperature=-1)


async def test_the_openai_client_gets_embeddings_in_both_encodings(client: openai.AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model="tiny", input=["one", "two"])
    plain = await client.embeddings.create(model="tiny", input="one", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding


async def test_the_openai_client_speaks_responses(client: openai.AsyncOpenAI) -> None:
    response = await client.responses.create(model="tiny", input="Say hi", max_output_tokens=16)
    assert len(response.output_text.split()) == 16
    events = [event.type async for event in await client.responses.create(model="tiny", input="Say hi", stream=True)]
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"


async def test_the_next_turn_of_a_chat_hits_everything_up_to_the_last_full_block(client: openai.AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "You know sorting. " * 30}, {"role": "user", "content": "Name one."}]
    before = 0
    for _ in range(3):
        answer = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=70)
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        # The answer's last token has no KV yet when the answer ends.
        assert usage.prompt_tokens_details.cached_tokens == max(0, before - 1) // 32 * 32
        before = usage.total_tokens
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": "Another."},
        ]


async def test_equal_prompts_give_equal_texts_and_seeds_tell_them_apart(launch: Launch) -> None:
    emulator = await launch()
    answers = [await post(emulator, "/v1/completions", completion(seed=seed)) for seed in (1, 1, 2)]
    first, second, third = (json.loads(answer.body)["choices"][0]["text"] for answer in answers)
    assert first == second != third


async def test_headers_come_before_the_prompt_was_computed(launch: Launch) -> None:
    emulator = await launch(speed=0.001)
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(stream=True)))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        assert emulator.app.driver.engine.num_live == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["fin", "reset", "half-close"])
async def test_a_client_that_leaves_frees_its_slot(launch: Launch, how: str, stream: bool) -> None:
    emulator = await launch(speed=1.0)
    engine = emulator.app.driver.engine
    async with connection(emulator) as (_, writer):
        writer.write(raw_post("/v1/completions", completion(3_000, stream=stream)))
        await until(lambda: engine.gauges().running == 1)
        if how == "half-close":
            writer.write_eof()
        else:
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        await until(lambda: engine.num_live == 0)
    assert engine.pool.num_used == 0
    await until(lambda: emulator.app.driver.metrics.running.value == 0)
    assert emulator.app.num_inside == 0
    assert emulator.app.driver.metrics.finished["abort"].value == 0


async def test_a_waiting_client_that_leaves_gives_up_its_place(launch: Launch) -> None:
    emulator = await launch(max_num_seqs=1, speed=1.0)
    engine = emulator.app.driver.engine
    async with connection(emulator) as (_, first), connection(emulator) as (_, second):
        first.write(raw_post("/v1/completions", completion(3_000, stream=True)))
        await until(lambda: engine.num_live == 1)
        second.write(raw_post("/v1/completions", completion(3_000, stream=True)))
        await until(lambda: engine.num_live == 2)
        second.transport.abort()
        await until(lambda: engine.num_live == 1)
        first.transport.abort()
        await until(lambda: engine.num_live == 0)


async def test_queue_limits_refuse_with_503_and_count(launch: Launch) -> None:
    emulator = await launch(max_num_seqs=1, max_num_queued_reqs=1, speed=0.05)
    async with connection(emulator) as (_, first), connection(emulator) as (_, second):
        for number, writer in enumerate((first, second)):
            writer.write(raw_post("/v1/completions", completion(3_000, stream=True)))
            await until(lambda number=number: emulator.app.driver.engine.num_live == number + 1)  # type: ignore[misc]
        assert (await post(emulator, "/v1/completions", completion(stream=True))).status == 503
    assert emulator.app.driver.metrics.rejections["max_num_queued_reqs"].value == 1


async def test_an_idle_connection_is_closed(launch: Launch) -> None:
    emulator = await launch()
    assert server.KEEP_ALIVE_S == 5.0
    runner = server.runner(server.build(emulator.app, with_faults=False), keep_alive_s=0.1)
    await runner.setup()
    site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    data = await asyncio.wait_for(reader.read(), 5)
    assert data.startswith(b"HTTP/1.1 200")
    writer.close()
    await runner.cleanup()


async def test_an_http_1_0_client_gets_events_without_chunks(launch: Launch) -> None:
    emulator = await launch()
    answer = await exchange(emulator.url, raw_post("/v1/completions", completion(stream=True), version="1.0"))
    assert "transfer-encoding" not in answer.headers
    assert answer.events[-1] == "data: [DONE]"


async def test_a_stop_string_ends_the_text_before_itself_even_across_tokens(launch: Launch) -> None:
    emulator = await launch()
    whole = json.loads((await post(emulator, "/v1/completions", completion(20))).body)["choices"][0]["text"]
    words = whole.split()
    stop = f"{words[5][-2:]} {words[6][:2]}"
    expected = whole[: whole.index(stop)]
    for stream in (False, True):
        answer = await post(emulator, "/v1/completions", completion(20, stop=[stop], stream=stream))
        bodies = [event for event in answer.events if isinstance(event, dict)] if stream else [json.loads(answer.body)]
        assert "".join(body["choices"][0]["text"] for body in bodies) == expected
        assert bodies[-1]["choices"][0]["finish_reason"] == "stop"
        assert bodies[-1]["choices"][0]["stop_reason"] == stop
    assert emulator.app.driver.engine.num_live == 0


async def test_echo_puts_the_prompt_in_front(launch: Launch) -> None:
    emulator = await launch()
    body = completion(4, prompt="one two", echo=True)
    whole = json.loads((await post(emulator, "/v1/completions", body)).body)["choices"][0]["text"]
    streamed = await post(emulator, "/v1/completions", body | {"stream": True})
    assert whole.startswith("one two")
    assert "".join(event["choices"][0]["text"] for event in streamed.events[:-1]) == whole


async def test_a_batch_with_samples_numbers_its_choices(launch: Launch) -> None:
    emulator = await launch()
    body = completion(3, prompt=[[5, 6, 7], [8, 9]], n=2, stream_options={"include_usage": True}, stream=True)
    events = (await post(emulator, "/v1/completions", body)).events
    ends = [event["choices"][0] for event in events[:-2] if event["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in ends) == [0, 1, 2, 3]
    assert events[-2]["usage"]["prompt_tokens"] == 5
    assert events[-2]["usage"]["completion_tokens"] == 12


async def test_sleep_forgets_the_cache_and_holds_requests_until_woken(launch: Launch) -> None:
    emulator = await launch()
    await post(emulator, "/v1/completions", completion())
    assert (await post(emulator, "/sleep?level=1", {})).status == 200
    sleeping = asyncio.create_task(post(emulator, "/v1/completions", completion()))
    await until(lambda: emulator.app.driver.engine.num_live == 1)
    assert emulator.app.driver.metrics.sleep_state["weights_offloaded"].value == 1
    assert (await post(emulator, "/wake_up", {})).status == 200
    usage = json.loads((await sleeping).body)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_prefix_cache_can_be_reset_when_nothing_runs(launch: Launch) -> None:
    emulator = await launch(speed=1.0)
    async with connection(emulator) as (_, writer):
        writer.write(raw_post("/v1/completions", completion(3_000, stream=True)))
        await until(lambda: emulator.app.driver.engine.gauges().running == 1)
        assert json.loads((await post(emulator, "/reset_prefix_cache", {})).body) == {"success": False}
    await until(lambda: emulator.app.driver.engine.num_live == 0)
    assert json.loads((await post(emulator, "/reset_prefix_cache", {})).body) == {"success": True}


async def test_adapters_can_be_loaded_and_unloaded(launch: Launch) -> None:
    emulator = await launch()
    load = {"lora_name": "chat", "lora_path": "models/chat"}
    assert (await post(emulator, "/v1/load_lora_adapter", load)).status == 200
    assert (await post(emulator, "/v1/load_lora_adapter", load)).status == 400
    assert (await post(emulator, "/v1/completions", completion(model="chat"))).status == 200
    assert (await post(emulator, "/v1/unload_lora_adapter", {"lora_name": "chat"})).status == 200
    assert (await post(emulator, "/v1/completions", completion(model="chat"))).status == 404


async def test_a_thousand_streams_at_once_all_arrive_whole(launch: Launch, http: aiohttp.ClientSession) -> None:
    emulator = await launch(preset="llama3-8b-h100", max_num_seqs=1_024, speed=20.0)

    async def one(number: int, session: aiohttp.ClientSession) -> bytes:
        body = {"prompt": [300 + number, 5, 6], "max_tokens": 4, "ignore_eos": True, "stream": True}
        async with session.post(f"{emulator.url}/v1/completions", json=body) as response:
            return await response.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        streams = await asyncio.gather(*(one(number, session) for number in range(1_000)))
    assert all(stream.count(b"data: ") == 5 and stream.endswith(b"data: [DONE]\n\n") for stream in streams)
    assert emulator.app.driver.metrics.generated.value == 4_000


async def test_a_dead_engine_ends_streams_with_an_error_event_and_refuses(launch: Launch) -> None:
    emulator = await launch(speed=1.0)
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(3_000, stream=True)))
        await until(lambda: emulator.app.driver.engine.gauges().running == 1)
        await fault(emulator, kind="die", seconds=3_600)
        answer = parse(await asyncio.wait_for(reader.read(), 5))
    assert answer.status == 200
    assert answer.events[-2]["error"]["code"] == 500
    assert answer.events[-1] == "data: [DONE]"
    assert (await exchange(emulator.url, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).status == 503
    assert (await post(emulator, "/v1/completions", completion(stream=True))).status == 500


async def test_a_hung_engine_is_healthy_and_makes_no_progress_until_it_goes_on(launch: Launch) -> None:
    emulator = await launch()
    await fault(emulator, kind="hang")
    pending = asyncio.create_task(post(emulator, "/v1/completions", completion()))
    await until(lambda: emulator.app.driver.engine.num_live == 1)
    for path in ("/health", "/metrics"):
        answer = await exchange(emulator.url, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert answer.status == 200
    assert not pending.done()
    await fault(emulator, kind="clear")
    assert (await pending).status == 200


async def test_a_draining_server_answers_200_with_empty_text_and_abort(launch: Launch) -> None:
    emulator = await launch()
    await fault(emulator, kind="drain")
    whole = json.loads((await post(emulator, "/v1/completions", completion())).body)["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("", "abort")
    streamed = await post(emulator, "/v1/completions", completion(stream=True))
    assert streamed.events[0]["choices"][0]["finish_reason"] == "abort"
    assert streamed.events[-1] == "data: [DONE]"


async def test_a_reset_before_headers_brings_no_byte(launch: Launch) -> None:
    emulator = await launch()
    await fault(emulator, kind="reset_before_headers", count=1)
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(stream=True)))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
    assert (await post(emulator, "/v1/completions", completion())).status == 200


async def test_a_reset_mid_stream_comes_after_the_events_asked_for(launch: Launch) -> None:
    emulator = await launch()
    await fault(emulator, kind="reset_mid_stream", count=1, after_events=3)
    received = b""
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(100, stream=True)))
        with pytest.raises(ConnectionResetError):
            while data := await asyncio.wait_for(reader.read(1_000), 5):
                received += data
    assert received.count(b"data: ") <= 3
    await until(lambda: emulator.app.driver.engine.num_live == 0)


@pytest.mark.parametrize("clean", [True, False])
async def test_a_truncated_stream_has_no_done(launch: Launch, clean: bool) -> None:
    emulator = await launch()
    await fault(emulator, kind="truncate", count=1, after_events=3, clean=clean)
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(100, stream=True)))
        data = await asyncio.wait_for(reader.read(), 5)
    assert data.count(b"data: ") == 3
    assert b"[DONE]" not in data
    assert data.endswith(b"0\r\n\r\n") == clean
    await until(lambda: emulator.app.driver.engine.num_live == 0)


async def test_a_silent_stream_has_headers_and_nothing_else(launch: Launch) -> None:
    emulator = await launch()
    await fault(emulator, kind="silent", count=1)
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(4, stream=True)))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200")
        await until(lambda: emulator.app.driver.engine.num_live == 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
    await until(lambda: emulator.app.num_inside == 0)


async def test_slow_makes_steps_longer_and_clear_takes_it_back(launch: Launch) -> None:
    emulator = await launch(speed=2.0)
    engine = emulator.app.driver.engine
    await fault(emulator, kind="slow", factor=3)
    assert engine.slowdown == pytest.approx(1.5)
    await fault(emulator, kind="slow", factor=4)
    assert engine.slowdown == pytest.approx(2.0)
    await fault(emulator, kind="clear")
    assert engine.slowdown == pytest.approx(0.5)


async def test_a_fault_that_makes_no_sense_is_refused(launch: Launch) -> None:
    emulator = await launch()
    for body in (
        {"kind": "melt"},
        {"kind": "slow", "factor": 0},
        {"kind": "busy", "colour": 1},
        {"kind": "busy", "count": "x"},
    ):
        assert (await post(emulator, "/emulator/faults", body)).status == 400
    closed = await launch(faults=False)
    assert (await post(closed, "/emulator/faults", {"kind": "busy"})).status == 404


async def test_reused_blocks_are_announced_again_where_asked_for(launch: Launch) -> None:
    emulator = await launch(kv_events_port=-1)
    pool = emulator.app.driver.engine.pool
    await post(emulator, "/v1/completions", completion(1))
    before = pool.cached_counts()
    body = completion(1, prompt=[*PROMPT[:96], 7], vllm_xargs={"kv_cache_report_mode": "full"})
    assert (await post(emulator, "/v1/completions", body)).status == 200
    assert pool.cached_counts() == before


async def test_tokens_arrive_at_the_engines_pace(launch: Launch) -> None:
    emulator = await launch(speed=1.0)
    body = json.loads((await post(emulator, "/v1/completions", completion(40))).body)
    assert body["metrics"]["mean_itl_ms"] == pytest.approx(5.07, abs=0.5)


async def test_a_body_of_ten_megabytes_is_read_and_refused_in_one_sentence(launch: Launch) -> None:
    emulator = await launch()
    answer = await post(emulator, "/v1/completions", completion(1, prompt="word " * 2_000_000))
    assert answer.status == 400
    assert "maximum context length is 4096" in json.loads(answer.body)["error"]["message"]

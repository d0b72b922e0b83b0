"""/metrics against recorded pages: names, labels, buckets, and when the numbers move."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest

from emulator.__main__ import Emulator
from emulator.prometheus import Histogram, Page
from tests.emulator.conftest import FIXTURES, Launch
from tests.emulator.test_server import completion, connection, post, raw_post
from tests.waiting import until

_SAMPLE = re.compile(r"^([a-z0-9_:]+)(?:\{(.*)\})? (\S+)$")


def samples(page: str) -> dict[tuple[str, str], float]:
    """Value by name and label text."""
    found = {}
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match:
            found[match[1], match[2] or ""] = float(match[3])
    return found


async def scrape(emulator: Emulator) -> dict[tuple[str, str], float]:
    async with aiohttp.ClientSession() as session, session.get(f"{emulator.url}/metrics") as response:
        assert response.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        return samples(await response.text())


def value(page: dict[tuple[str, str], float], name: str) -> float:
    return next(number for (key, _), number in page.items() if key == f"vllm:{name}")


async def test_every_series_has_a_name_and_labels_that_vllm_has(launch: Launch) -> None:
    recorded = samples((FIXTURES / "metrics" / "load_waiting_lora.txt").read_text())
    emulator = await launch()
    ours = await scrape(emulator)
    strange = {key for key in ours if key not in recorded and "cache_config_info" not in key[0]}
    assert not strange
    config = next(labels for name, labels in ours if name == "vllm:cache_config_info")
    theirs = next(labels for name, labels in recorded if name == "vllm:cache_config_info")
    assert set(re.findall(r"(\w+)=", config)) <= set(re.findall(r"(\w+)=", theirs))
    assert 'block_size="32"' in config
    assert 'num_gpu_blocks="700"' in config


async def test_the_names_that_routers_read_are_all_there(launch: Launch) -> None:
    names = {name for name, _ in await scrape(await launch())}
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total"),
        *("prefix_cache_hits_total", "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total"),
        *("request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_sum"),
        *("e2e_request_latency_seconds_count", "request_queue_time_seconds_bucket", "cache_config_info", "engine_sleep_state"),
    ):
        assert f"vllm:{name}" in names


async def test_gauges_are_one_step_late(launch: Launch) -> None:
    emulator = await launch(speed=0.1)
    engine = emulator.app.driver.engine
    async with connection(emulator) as (reader, writer):
        writer.write(raw_post("/v1/completions", completion(500, stream=True)))
        await until(lambda: bool(engine.scheduler.running))
        during = await scrape(emulator)
        await asyncio.wait_for(reader.readuntil(b"data: "), 10)
        after = await scrape(emulator)
    assert value(during, "num_requests_running") == 0
    assert value(after, "num_requests_running") == 1
    assert value(after, "kv_cache_usage_perc") > 0


async def test_counters_and_histograms_tell_what_happened(launch: Launch) -> None:
    emulator = await launch()
    for _ in range(2):
        await post(emulator, "/v1/completions", completion(5))
    page = await scrape(emulator)
    assert value(page, "prompt_tokens_total") == 200
    assert value(page, "prefix_cache_queries_total") == 200
    assert value(page, "prefix_cache_hits_total") == 96
    assert value(page, "generation_tokens_total") == 10
    assert value(page, "time_to_first_token_seconds_count") == 2
    assert value(page, "inter_token_latency_seconds_count") == 8
    assert page["vllm:request_success_total", 'engine="0",finished_reason="length",model_name="tiny"'] == 2
    assert value(page, "num_requests_running") == 0


async def test_adapters_at_work_are_named(launch: Launch) -> None:
    emulator = await launch()
    await post(emulator, "/v1/completions", completion(5, model="sql"))
    page = await scrape(emulator)
    labels = {labels for name, labels in page if name == "vllm:lora_requests_info"}
    assert 'max_lora="1",running_lora_adapters="sql",waiting_lora_adapters=""' in labels


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    histogram = Histogram((1.0, 2.0))
    for observed in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(observed)
    lines = histogram.lines("x", {})
    assert lines == ['x_bucket{le="1.0"} 2.0', 'x_bucket{le="2.0"} 4.0', 'x_bucket{le="+Inf"} 5.0', "x_count 5.0", "x_sum 14.0"]
    histogram.observe(1.0)
    assert histogram.lines("x", {})[0] == 'x_bucket{le="1.0"} 3.0'


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb"])
def test_label_values_are_escaped(text: str) -> None:
    page = Page({"name": text}, 0.0)
    page.gauge("x", "help")
    assert len(page.render().splitlines()) == 3

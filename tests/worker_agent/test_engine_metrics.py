"""Figures from real pages of vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replace_struct

from contract.keyspace import RankFigures
from tests.worker_agent.conftest import page
from worker_agent.engine_metrics import CacheConfig, NotMetrics, parse, restart_reason


def test_a_loaded_engine_is_read() -> None:
    metrics = parse(page("load_waiting_lora"))
    assert (metrics.running, metrics.waiting) == (8, 16)
    assert 0 < metrics.kv_usage < 1
    assert metrics.cache == CacheConfig(block_size=32, blocks=462, prefix_caching=True)
    assert metrics.process_start_s > 1.7e9
    assert metrics.ranks == 1
    assert not metrics.asleep


def test_a_fresh_engine_has_counted_nothing() -> None:
    metrics = parse(page("fresh_start"))
    assert (metrics.running, metrics.waiting, metrics.prompt_tokens, metrics.generation_tokens, metrics.preemptions) == (0,) * 5


def test_data_parallel_ranks_are_summed_but_for_usage_and_capacity() -> None:
    metrics = parse(page("dp2_load"))
    assert (metrics.running, metrics.waiting, metrics.ranks) == (16, 4, 2)
    assert metrics.prefix_query_tokens == 1600
    assert metrics.generation_tokens == 20
    assert metrics.kv_usage == pytest.approx(0.06941431670281994)
    assert metrics.cache.blocks == 924


def test_each_rank_has_figures_of_its_own_too() -> None:
    figures = RankFigures(8, 2, pytest.approx(0.06941431670281994), 9, 800)
    assert parse(page("dp2_load")).by_rank == (figures, replace_struct(figures, generation_tokens=11))
    assert parse(page("load_waiting_lora")).by_rank == ()


@pytest.mark.parametrize("labels", [("2", "3"), ("1", "1"), ("a", "b"), ("0", "2")])
def test_ranks_that_the_header_may_count_differently_have_none(labels: tuple[str, str]) -> None:
    lines = [f'vllm:num_requests_running{{engine="{label}",model_name="m"}} 1.0' for label in labels]
    metrics = parse("\n".join(lines).encode())
    assert (metrics.running, metrics.by_rank) == (2, ())


@given(st.permutations(range(5)))
def test_figures_are_by_rank_whatever_the_order_of_the_page(order: list[int]) -> None:
    lines = [f'vllm:num_requests_running{{engine="{rank}",model_name="m"}} {rank}.0' for rank in order]
    assert [figures.running for figures in parse("\n".join(lines).encode()).by_rank] == [0, 1, 2, 3, 4]


def test_the_block_size_is_the_engines_and_not_assumed() -> None:
    assert parse(page("v0.28.0_after_events")).cache.block_size == 16


def test_hits_are_counted_in_tokens() -> None:
    metrics = parse(page("after_prefix_hits"))
    assert 0 < metrics.prefix_hit_tokens < metrics.prefix_query_tokens


OLD = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:gpu_prefix_cache_queries_total{model_name="m"} 100.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 40.0
vllm:cache_config_info{block_size="16",enable_prefix_caching="False",num_gpu_blocks="None"} 1.0
"""


def test_old_names_are_understood_and_absent_ones_are_zero() -> None:
    metrics = parse(OLD)
    assert (metrics.running, metrics.waiting, metrics.kv_usage) == (2, 1, 0.5)
    assert (metrics.prefix_query_tokens, metrics.prefix_hit_tokens) == (100, 40)
    assert metrics.cache == CacheConfig(block_size=16, blocks=0, prefix_caching=False)
    assert metrics.process_start_s == 0.0


def test_the_new_name_wins_where_a_page_has_both() -> None:
    assert parse(OLD + b'vllm:kv_cache_usage_perc{model_name="m"} 0.7\n').kv_usage == 0.7


def test_a_time_stamp_behind_the_value_and_a_brace_in_a_label_are_no_trouble() -> None:
    assert parse(b'vllm:num_requests_running{model_name="a} 9"} 3.0 1700000000000').running == 3


@pytest.mark.parametrize("state", ["weights_offloaded", "discard_all"])
def test_an_engine_that_is_not_awake_is_asleep(state: str) -> None:
    text = page("fresh_start").replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0')
    text = text.replace(f'sleep_state="{state}"}} 0.0'.encode(), f'sleep_state="{state}"}} 1.0'.encode())
    assert parse(text).asleep


@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b"node_load1 0.5\n", b"vllm:num_requests_running{} many\n"])
def test_another_servers_page_is_refused(body: bytes) -> None:
    with pytest.raises(NotMetrics):
        parse(body)


@given(st.binary(max_size=300))
def test_any_bytes_give_figures_or_a_refusal(noise: bytes) -> None:
    for text in (noise, OLD + noise, noise + b"\n" + OLD):
        try:
            parse(text)
        except NotMetrics:
            pass


def test_a_restart_shows_in_start_time_counters_or_configuration() -> None:
    before = replace(parse(page("after_prefix_hits")), process_start_s=1.0)
    assert restart_reason(before, replace(before, prompt_tokens=before.prompt_tokens + 1)) == ""
    assert "started" in restart_reason(before, replace(before, process_start_s=2.0))
    assert "counters" in restart_reason(before, replace(before, generation_tokens=0))
    assert "configured" in restart_reason(before, replace(before, cache=CacheConfig(16, 1)))
    assert restart_reason(replace(before, process_start_s=0.0), before) == ""


@pytest.mark.parametrize("value", ["NaN", "-1", "1e300", "+Inf", "-Inf"])
def test_a_value_that_no_count_can_be_is_none(value: str) -> None:
    found = parse(b'\nvllm:num_requests_running{engine="0"} %s\nvllm:num_requests_waiting{engine="0"} 2\n' % value.encode())
    assert (found.running, found.waiting) == (0, 2)

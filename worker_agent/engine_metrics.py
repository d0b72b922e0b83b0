"""vLLM's Prometheus page to one row of figures.

A page has 50 KB and about a thousand lines, of which some fifteen families matter, ten times a second: so it is searched, not
parsed (0.1-0.2 ms; a general parser takes 20 ms). Families may come under an old and a new name (renamed in vLLM 0.9-0.14);
the new one wins. Every series exists once per data-parallel engine: summed, but usage is the maximum. Where the engines are
numbered from 0 on, as the header X-data-parallel-rank counts them, each one's own figures are kept, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contract.keyspace import RankFigures

RUNNING = (b"vllm:num_requests_running",)
WAITING = (b"vllm:num_requests_waiting",)
KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
GENERATION_TOKENS = (b"vllm:generation_tokens_total", b"vllm:generation_tokens")
PROMPT_TOKENS = (b"vllm:prompt_tokens_total", b"vllm:prompt_tokens")
PREFIX_QUERIES = (
    b"vllm:prefix_cache_queries_total",
    b"vllm:prefix_cache_queries",
    b"vllm:gpu_prefix_cache_queries_total",
    b"vllm:gpu_prefix_cache_queries",
)
PREFIX_HITS = (
    b"vllm:prefix_cache_hits_total",
    b"vllm:prefix_cache_hits",
    b"vllm:gpu_prefix_cache_hits_total",
    b"vllm:gpu_prefix_cache_hits",
)
PREEMPTIONS = (b"vllm:num_preemptions_total", b"vllm:num_preemptions")
SLEEP_STATE = b"vllm:engine_sleep_state"
CACHE_CONFIG = b"vllm:cache_config_info"
PROCESS_START = (b"process_start_time_seconds",)

VALUE_MAX = 1e15
"""Above it a value is none that we read: tokens of centuries, and room to add up those of many ranks."""

_ENGINE = re.compile(rb'[{,]engine="(\d+)"')
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


class NotMetrics(ValueError):
    """A page without a single vLLM series: another server's, or an error page."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache as the engine configured it. Numbers are 0 where the engine does not say."""

    block_size: int = 0  # tokens a block, as the prefix cache hashes them
    blocks: int = 0  # over all data-parallel ranks
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One scrape. Counters count since the engine's start; `process_start_s` is Unix time, 0 where the page has none."""

    running: int
    waiting: int
    kv_usage: float
    generation_tokens: int
    prompt_tokens: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    asleep: bool
    ranks: int
    process_start_s: float
    cache: CacheConfig
    by_rank: tuple[RankFigures, ...] = ()  # by rank; empty where there is one alone, or where they are not numbered from 0 on


def parse(page: bytes) -> EngineMetrics:
    """NotMetrics: nothing of vLLM in it, or a value that is no number."""
    if not page.startswith(b"\n"):
        page = b"\n" + page
    running = _values(page, RUNNING)
    if not running and page.find(b"\nvllm:") < 0:
        raise NotMetrics(f"no vllm: series in {len(page)} bytes")
    return EngineMetrics(
        running=_total(running),
        waiting=_total(_values(page, WAITING)),
        kv_usage=max(_values(page, KV_USAGE), default=0.0),
        generation_tokens=_total(_values(page, GENERATION_TOKENS)),
        prompt_tokens=_total(_values(page, PROMPT_TOKENS)),
        prefix_query_tokens=_total(_values(page, PREFIX_QUERIES)),
        prefix_hit_tokens=_total(_values(page, PREFIX_HITS)),
        preemptions=_total(_values(page, PREEMPTIONS)),
        asleep=_asleep(page),
        ranks=max(1, len(running)),
        process_start_s=max(_values(page, PROCESS_START), default=0.0),
        cache=_cache_config(page),
        by_rank=_by_rank(page) if len(running) > 1 else (),
    )


def restart_reason(before: EngineMetrics, after: EngineMetrics) -> str:
    """Why `after` cannot be the same run of the engine as `before`; "" where it can."""
    if before.process_start_s and after.process_start_s and before.process_start_s != after.process_start_s:
        return "its process started anew"
    if after.prompt_tokens < before.prompt_tokens or after.generation_tokens < before.generation_tokens:
        return "its counters went back"
    if after.cache != before.cache and before.cache != CacheConfig():
        return "its cache is configured differently"
    return ""


def _by_rank(page: bytes) -> tuple[RankFigures, ...]:
    running = _by_engine(page, RUNNING)
    if sorted(running) != list(range(len(running))):
        return ()  # of another node's ranks, say: which of them the header would name is not known
    waiting, usage = _by_engine(page, WAITING), _by_engine(page, KV_USAGE)
    generated, prompts = _by_engine(page, GENERATION_TOKENS), _by_engine(page, PROMPT_TOKENS)
    return tuple(
        RankFigures(
            int(running[rank]),
            int(waiting.get(rank, 0.0)),
            usage.get(rank, 0.0),
            int(generated.get(rank, 0.0)),
            int(prompts.get(rank, 0.0)),
        )
        for rank in range(len(running))
    )


def _by_engine(page: bytes, names: tuple[bytes, ...]) -> dict[int, float]:
    """Engine number -> value, of the first of these families that the page has."""
    for name in names:
        lines = _lines(page, name)
        if lines:
            numbered = [(found, _value(line)) for line in lines if (found := _ENGINE.search(line))]
            return {int(found[1]): value for found, value in numbered} if len(numbered) == len(lines) else {}
    return {}


def _total(values: list[float]) -> int:
    return int(sum(values))


def _values(page: bytes, names: tuple[bytes, ...]) -> list[float]:
    """The values of the first of these families that the page has."""
    for name in names:
        lines = _lines(page, name)
        if lines:
            return [_value(line) for line in lines]
    return []


def _lines(page: bytes, name: bytes) -> list[bytes]:
    """The series of one family; they stand next to each other. `page` begins with a newline."""
    lines = []
    for opening in (b"\n" + name + b"{", b"\n" + name + b" "):
        at = page.find(opening)
        while at >= 0:
            end = page.find(b"\n", at + 1)
            if end < 0:
                end = len(page)
            lines.append(page[at + 1 : end])
            at = end if page.startswith(opening, end) else -1
        if lines:
            break
    return lines


def _value(line: bytes) -> float:
    """The number behind the labels; a time stamp may follow it. What no count or share can be (NaN, below 0, beyond what a
    report can say) is 0."""
    labels_end = line.rfind(b"}")
    fields = line[labels_end + 1 :].split() if labels_end >= 0 else line.split()[1:]
    try:
        value = float(fields[0])
    except (IndexError, ValueError):
        raise NotMetrics(f"no number in {line[:80]!r}") from None
    return value if 0.0 <= value <= VALUE_MAX else 0.0


def _asleep(page: bytes) -> bool:
    """Whether any engine says that it is not awake. Absent in old versions: awake."""
    awake = [line for line in _lines(page, SLEEP_STATE) if b'sleep_state="awake"' in line]
    return any(_value(line) == 0.0 for line in awake)


def _cache_config(page: bytes) -> CacheConfig:
    configs = [_labels(line) for line in _lines(page, CACHE_CONFIG)]
    if not configs:
        return CacheConfig()
    first = configs[0]
    block_size = _number(first, b"prefix_match_unit") or _number(first, b"hash_block_size") or _number(first, b"block_size")
    # vLLM writes the sum over its ranks into each rank's num_gpu_blocks, but the tokens of one rank.
    tokens = sum(_number(config, b"kv_cache_size_tokens") for config in configs)
    blocks = max(_number(config, b"num_gpu_blocks") for config in configs)
    return CacheConfig(
        block_size=block_size,
        blocks=max(blocks, tokens // block_size if block_size else 0),
        prefix_caching=first.get(b"enable_prefix_caching", b"True") != b"False",
    )


def _labels(line: bytes) -> dict[bytes, bytes]:
    return dict(_LABEL.findall(line))


def _number(labels: dict[bytes, bytes], name: bytes) -> int:
    text = labels.get(name, b"")
    return int(text) if text.isdigit() else 0

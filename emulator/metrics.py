"""What /metrics says: vLLM's names, labels, units and buckets (0.32), fed from step results.

Pure: `step` is called when a step's outputs arrive, so gauges are as late as the engine's. A client that leaves is counted
nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from emulator.engine import NO_TOKEN, EngineConfig, Gauges, StepResult
from emulator.prometheus import Page, Value, labels_text
from emulator.sequence import FinishReason, Sequence

TTFT_BOUNDS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BOUNDS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
PHASE_BOUNDS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKEN_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
LONG_TOKEN_BOUNDS = (*TOKEN_BOUNDS, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0)
STEP_BOUNDS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
N_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTION_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")
QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")


class EngineMetrics:
    """One engine's page. model: the first served name; adapters count under it."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        model: str,
        created_unix: float,
        max_loras: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """rank: of `ranks` data-parallel engines behind one server."""
        labels = {"engine": str(rank), "model_name": model}
        page = Page(labels, created_unix)
        self.page = page
        self._config = config
        self._max_loras = max_loras
        self.process_start = page.info(
            "process_start_time_seconds", "Start time of the process since unix epoch in seconds.", {}
        )
        self.process_start.value = created_unix
        self.running = page.gauge("vllm:num_requests_running", "Number of requests in model execution batches.")
        self.waiting = page.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.")
        self.waiting_by_reason = page.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Sum of all reasons equals vllm:num_requests_waiting.",
            "reason",
            ("capacity", "deferred"),
        )
        self.sleep_state = page.gauges("vllm:engine_sleep_state", "Engine sleep state.", "sleep_state", SLEEP_STATES)
        self.sleep_state["awake"].value = 1.0
        self.usage = page.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.cache_queries = page.counter(
            "vllm:prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."
        )
        self.cache_hits = page.counter("vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.")
        self.preemptions = page.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt_tokens = page.counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.by_source = page.counters(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            "source",
            ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )
        self.prompt_cached = page.counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).")
        self.generated = page.counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self.finished = page.counters(
            "vllm:request_success",
            "Count of successfully processed requests.",
            "finished_reason",
            ("stop", "length", "abort", "error", "repetition"),
        )
        self.rejections = page.counters(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            "reason",
            QUEUE_LIMITS,
            without="engine",  # counted in the HTTP process
        )
        bounds = TOKEN_BOUNDS if config.max_model_len <= 5_000 else LONG_TOKEN_BOUNDS
        histogram = page.histogram
        self.request_prompt = histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", bounds)
        self.request_generated = histogram("vllm:request_generation_tokens", "Number of generation tokens processed.", bounds)
        self.step_tokens = histogram(
            "vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", STEP_BOUNDS
        )
        self.params_n = histogram("vllm:request_params_n", "Histogram of the n request parameter.", N_BOUNDS)
        self.params_max_tokens = histogram(
            "vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", bounds
        )
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", TTFT_BOUNDS_S)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", ITL_BOUNDS_S)
        self.tpot = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            ITL_BOUNDS_S,
        )
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", PHASE_BOUNDS_S)
        self.phases = {
            phase: histogram(
                f"vllm:request_{phase}_time_seconds",
                f"Histogram of time spent in {shown} phase for request.",
                PHASE_BOUNDS_S,
            )
            for phase, shown in (("queue", "WAITING"), ("inference", "RUNNING"), ("prefill", "PREFILL"), ("decode", "DECODE"))
        }
        self.request_preemptions = histogram(
            "vllm:request_num_preemptions", "Histogram of the number of times a request was preempted.", PREEMPTION_BOUNDS
        )
        self.request_computed = histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            bounds,
        )
        self._lora_info = page.series("vllm:lora_requests_info", "Running stats on lora requests.")
        page.info(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", cache_config_labels(config, rank, ranks)
        )
        self._last_step_s: dict[str, float] = {}

    def render(self, *others: EngineMetrics) -> str:
        """The page of a server. others: of its other engines."""
        return self.page.render(*(other.page for other in others))

    def request(self, *, n: int, max_tokens: int) -> None:
        """One accepted request, as asked for."""
        self.params_n.observe(n)
        self.params_max_tokens.observe(max_tokens)

    def set_gauges(self, gauges: Gauges, unix_s: float) -> None:
        """What the engine counted at the end of a step."""
        self.running.value = gauges.running
        self.waiting.value = gauges.waiting
        self.waiting_by_reason["capacity"].value = gauges.waiting
        self.usage.value = gauges.usage
        if self._max_loras:
            self._set_loras(gauges, unix_s)

    def step(self, result: StepResult, end_s: float, unix_s: float) -> None:
        """A step's outputs have arrived. end_s: on the clock of the engine's `now`."""
        self.set_gauges(result.gauges, unix_s)
        self.preemptions.value += result.num_preempted
        self.step_tokens.observe(result.batch.tokens)
        for sequence in result.started:
            self._started(sequence)
        decoded = 0
        for sequence, token, finish in result.outputs:
            if token != NO_TOKEN:
                decoded += 1
                self._token(sequence, end_s)
            if finish is not None:
                self.finish(sequence, finish, end_s)
        self.generated.value += decoded

    def _started(self, sequence: Sequence) -> None:
        cached = sequence.num_cached
        self.cache_queries.value += sequence.num_prompt
        self.cache_hits.value += cached
        self.prompt_cached.value += cached
        self.by_source["local_cache_hit"].value += cached

    def _token(self, sequence: Sequence, end_s: float) -> None:
        key = sequence.request.request_id
        last = self._last_step_s.get(key)
        if last is not None:
            self.itl.observe(end_s - last)
        elif sequence.num_output == 1:
            self.ttft.observe(end_s - sequence.arrived_s)
            self.prompt_tokens.value += sequence.num_prompt
            self.by_source["local_compute"].value += sequence.num_prompt - sequence.num_cached
        self._last_step_s[key] = end_s

    def forget(self, request_id: str) -> None:
        """A request that ends without a finish: its client left."""
        self._last_step_s.pop(request_id, None)

    def finish(self, sequence: Sequence, finish: FinishReason, end_s: float) -> None:
        """A request has ended by itself."""
        self.forget(sequence.request.request_id)
        self.finished[finish.value].value += 1
        self.request_prompt.observe(sequence.num_prompt)
        self.request_generated.observe(sequence.num_output)
        self.request_preemptions.observe(sequence.num_preemptions)
        self.request_computed.observe(sequence.num_prompt - max(sequence.num_cached, 0))
        self.e2e.observe(end_s - sequence.arrived_s)
        scheduled_s = sequence.scheduled_s if sequence.scheduled_s is not None else end_s
        first_s = sequence.first_token_s if sequence.first_token_s is not None else end_s
        self.phases["queue"].observe(scheduled_s - sequence.arrived_s)
        self.phases["inference"].observe(end_s - scheduled_s)
        self.phases["prefill"].observe(first_s - scheduled_s)
        self.phases["decode"].observe(end_s - first_s)
        if sequence.num_output > 1:
            self.tpot.observe((end_s - first_s) / (sequence.num_output - 1))

    def _set_loras(self, gauges: Gauges, unix_s: float) -> None:
        labels = {
            "max_lora": str(self._max_loras),
            "running_lora_adapters": ",".join(gauges.running_loras),
            "waiting_lora_adapters": ",".join(gauges.waiting_loras),
        }
        text = labels_text(labels)
        for known, value in self._lora_info:
            if labels_text(known) == text:
                assert isinstance(value, Value)
                value.value = unix_s
                return
        self._lora_info.append((labels, Value(unix_s)))


def cache_config_labels(config: EngineConfig, rank: int = 0, ranks: int = 1) -> Mapping[str, str]:
    """Labels of vllm:cache_config_info that can be known without a GPU. Each engine's says the blocks of all together, and the
    tokens of one."""
    return {
        "block_size": str(config.block_size),
        "cache_dtype": "auto",
        "effective_attention_block_size": str(config.block_size),
        "enable_prefix_caching": str(config.caching),
        "engine": str(rank),
        "gpu_memory_utilization": "0.92",
        "hash_block_size": "None",
        "kv_cache_max_concurrency": str(config.num_blocks * config.block_size / config.max_model_len),
        "kv_cache_size_tokens": str(config.num_blocks * config.block_size),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(config.num_blocks * ranks),
        "num_gpu_blocks_override": str(config.num_blocks),
        "prefix_caching_hash_algo": "sha256",
        "prefix_match_unit": "None",
        "sliding_window": "None",
        "user_specified_block_size": "True",
    }

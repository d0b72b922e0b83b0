"""The TTFT feature row: what was known of one candidate when a decision was made.

One definition serves both sides: the control plane fills a row per candidate at decision time and stores the chosen one with
the outcome; the trainer reads those rows back. Rows are plain float lists in the order of FEATURES. Any change of names,
order or units raises VERSION: a model trained on another version is refused.
"""

from __future__ import annotations

VERSION = 6

FEATURES: tuple[str, ...] = (
    "input_tokens",  # prompt length
    "matched_tokens",  # of which this endpoint is believed to hold in its KV cache
    "uncached_tokens",  # input - matched
    "active",  # requests the router has at this endpoint, this one not included
    "no_first_byte",  # of those, still without a first token
    "prefill_tokens",  # uncached prompt tokens of those without a first token
    "prefill_pairs",  # of the same requests: pairs of an uncached token and a token before it, what attention costs
    "prefill_wait_s",  # since the latest first token there, or since those without one began to queue if that is later
    "step_age_s",  # since anything came from there last: a step of the engine ended, the next began; 0 where nothing is active
    "head_tokens",  # uncached prompt tokens of the oldest request without a first token
    "context_tokens",  # prompt tokens of all active requests
    "running",  # the engine's report
    "waiting",  # the engine's report
    "kv_usage",  # the engine's report, 0..1
    "report_age_s",  # how old the three above are
    "max_tokens",  # the caller's bound on output, 0 where none
    "prefill_tokens_per_s",  # prefill work over the time it took while the endpoint was at it, lately; 0 until known
    "decode_itl_s",  # learned mean gap between tokens at this endpoint, 0 until known
    "ttft_ewma_s",  # recent first tokens at this endpoint, 0 until known
    "cache_tokens",  # KV capacity of the endpoint
    "seats",  # requests it computes at once at most, as its agent says, or as was seen while others waited; 0 until known
    "hold_s",  # from first token to end, lately: how long a request keeps its seat; 0 until known
    "step_s",  # of one decode step at its quickest lately, by the engine's count of tokens; 0 until known
    "begins_s",  # until the engine would begin with this prompt: the work before it, and the answers whose seats it needs
)

PAIRS_A_TOKEN = 40_000.0
"""Attention pairs that cost what a token costs otherwise: 30,000 to 53,000 for Llamas of 8 to 70 billion parameters."""


SPEED_UNKNOWN = 10_000.0
"""Prefill tokens a second, of an endpoint that has not shown its own yet."""


def prefill_work(tokens: float, pairs: float) -> float:
    """Of prompt tokens to compute and their attention pairs, in tokens: a long prompt costs more than its length."""
    return tokens + pairs / PAIRS_A_TOKEN


INDEX: dict[str, int] = {name: position for position, name in enumerate(FEATURES)}

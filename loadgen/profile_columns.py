"""What every column of a profile says, and its unit. `headway profile --columns` prints it; each Parquet field carries it."""

from __future__ import annotations

from collections.abc import Mapping

FEATURE = "known to the router when it decided"
FATE = "what became of the request"
STEP = "the step of the sweep"
ENGINE = "the engine's own /metrics, ten times a second"

GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    FEATURE: {
        "input_tokens": ("tokens", "prompt length"),
        "matched_tokens": ("tokens", "of which the worker was believed to hold in its KV cache"),
        "uncached_tokens": ("tokens", "input_tokens - matched_tokens"),
        "active": ("requests", "the router's, at this worker; this one is not counted"),
        "no_first_byte": ("requests", "of those, still without a first token"),
        "prefill_tokens": ("tokens", "uncached prompt tokens of those without a first token"),
        "prefill_pairs": ("pairs", "of the same requests: an uncached token with each token before it, what attention costs"),
        "prefill_wait_s": (
            "s",
            "since the latest first token there, or since those without one began to queue if that is later",
        ),
        "step_age_s": ("s", "since tokens came from there last, so since a step of its engine; 0 where nothing is active"),
        "head_tokens": ("tokens", "uncached prompt tokens of the oldest request without a first token"),
        "context_tokens": ("tokens", "prompt tokens of all active requests"),
        "running": ("requests", "the engine's newest report"),
        "waiting": ("requests", "the engine's newest report"),
        "kv_usage": ("share", "the engine's newest report, 0 to 1"),
        "report_age_s": ("s", "how old the three above were"),
        "max_tokens": ("tokens", "the caller's bound on the answer, 0 for none"),
        "prefill_tokens_per_s": ("tokens/s", "prefill work over the time it took at this worker, lately; 0 until known"),
        "decode_itl_s": ("s", "learned mean gap between tokens at this worker, 0 until known"),
        "ttft_ewma_s": ("s", "recent first tokens at this worker, 0 until known"),
        "cache_tokens": ("tokens", "KV capacity of the worker"),
        "seats": ("requests", "computed at once at most, as its agent says, or as was seen while others waited; 0 until known"),
        "step_s": ("s", "of one decode step at its quickest lately, by the engine's count of tokens; 0 until known"),
        "begins_s": (
            "s",
            "until the engine would begin with this prompt: the work queued before it, and the answers whose seats it needs",
        ),
        "hold_s": ("s", "recent times from first token to end at this worker, 0 until known"),
    },
    FATE: {
        "decision_id": ("", "of the router's decision"),
        "request_id": ("", "of the request, unique in a run"),
        "decided_at": ("s", "Unix time of the decision; within a run counted in the fleet's time from its start"),
        "model": ("", "asked for"),
        "worker": ("", "that served it"),
        "accelerator": ("", "of the worker, as its agent says"),
        "policy": ("", "that chose the worker"),
        "end": ("", "how it ended: 1 complete; other ends are no rows"),
        "streamed": ("", "true; others have no TTFT and are no rows"),
        "attempt": ("", "0, or how often it had been tried elsewhere before"),
        "output_tokens": ("tokens", "of the answer"),
        "cached_tokens": ("tokens", "of the prompt, that the engine says it did not compute; -1 not said"),
        "ttft_s": ("s", "label: from sending the request to the worker to the first event with content"),
        "itl_s": ("s", "label: mean gap between the answer's tokens; -1 for one of a single token"),
        "e2e_s": ("s", "label: from sending the request to the worker to its end"),
        "predicted_ttft_s": ("s", "median that the decision was made by, -1 where the policy predicts none"),
        "predicted_p90_s": ("s", "90th percentile, the same"),
        "model_id": ("", "of the model that predicted, empty for none"),
        "feature_version": ("", "of the features above"),
    },
    STEP: {
        "run": ("", "name of the run"),
        "step": ("", "number of the step in its plan"),
        "rate_rps": ("requests/s", "planned; nan where a recording does not say"),
        "arrived_rps": ("requests/s", "as they reached the router, from the step's first row to its last; nan below two rows"),
        "level": ("share of saturation", "planned rate over the rate at which this mix saturates the fleet; -1 not known"),
        "mix": ("", "of prompt lengths in the step: a bucket, or mixed"),
        "bucket": ("", "that this prompt's length is in"),
        "overlap": ("share", "of a prompt with which others of the step begin, too; -1 for a recorded workload"),
        "output_class": ("", "of the answers' lengths: short 8 to 64 tokens, long 65 to 256, or recorded"),
        "speed": ("", "seconds of the fleet in one of the machine; times above are already the fleet's"),
    },
    ENGINE: {
        "engine_running": ("requests", "newest page before the decision; nan where there was none"),
        "engine_waiting": ("requests", "the same page"),
        "engine_kv_usage": ("share", "the same page, 0 to 1"),
        "engine_preemptions": ("requests", "the same page: since the engine started"),
        "engine_age_s": ("s", "how old that page was at the decision"),
    },
}
COLUMNS: Mapping[str, tuple[str, str]] = {name: about for group in GROUPS.values() for name, about in group.items()}
"""(unit, meaning) by column, in the order of the file."""


def markdown() -> str:
    """A table a group."""
    lines: list[str] = []
    for group, columns in GROUPS.items():
        lines += [f"| {group} | unit | |", "|---|---|---|"]
        lines += [f"| `{name}` | {unit} | {about} |" for name, (unit, about) in columns.items()]
        lines.append("")
    return "\n".join(lines)

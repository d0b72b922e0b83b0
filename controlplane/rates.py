"""How fast one endpoint has been lately, learned from its own requests: exponentially weighted means.

The prefill speed is work in tokens over time, both summed and both forgotten at one pace: a quotient of sums, since
requests that an engine computes in one step get their first tokens at one moment, the first of them after all the time, the
others after none.
"""

from __future__ import annotations

WEIGHT = 0.1
"""Of the newest sample. Twenty requests after a change of speed the mean has moved by 88 % of it."""
PREFILL_KEPT = 0.97
"""Of the sums of prefill tokens and times, with each first byte: 23 requests halve what was before."""
PREFILL_TOKENS_MIN = 64
"""A first byte that had less to compute says more about overheads than about prefill speed."""


def _blend(mean: float, sample: float) -> float:
    return sample if mean == 0.0 else mean + WEIGHT * (sample - mean)


class Rates:
    """Zero means not known yet."""

    __slots__ = ("_prefill_s", "_prefill_work", "decode_itl_s", "prefill_tokens_per_s", "ttft_ewma_s")

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self._prefill_work = 0.0
        self._prefill_s = 0.0
        self.decode_itl_s = 0.0
        self.ttft_ewma_s = 0.0

    def first_byte(self, ttft_s: float, *, work: float, service_s: float, tokens_ahead: int) -> None:
        """work: of this request's prompt, as contract.features.prefill_work has it; service_s: what of its time did not pass
        behind others' first bytes; tokens_ahead: of this request and of those queued before it when it was sent."""
        if ttft_s <= 0:
            return
        self.ttft_ewma_s = _blend(self.ttft_ewma_s, ttft_s)
        if tokens_ahead >= PREFILL_TOKENS_MIN:
            self._prefill_work = PREFILL_KEPT * self._prefill_work + work
            self._prefill_s = PREFILL_KEPT * self._prefill_s + max(0.0, service_s)
            if self._prefill_s > 0:
                self.prefill_tokens_per_s = self._prefill_work / self._prefill_s

    def gap(self, itl_s: float) -> None:
        """Mean gap between the tokens of one response."""
        if itl_s > 0:
            self.decode_itl_s = _blend(self.decode_itl_s, itl_s)

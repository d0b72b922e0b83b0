"""How fast one endpoint has been lately, learned from its own requests: exponentially weighted means."""

from __future__ import annotations

WEIGHT = 0.1
"""Of the newest sample. Twenty requests after a change of speed the mean has moved by 88 % of it."""
PREFILL_TOKENS_MIN = 64
"""A first byte that had less to compute says more about overheads than about prefill speed."""


def _blend(mean: float, sample: float) -> float:
    return sample if mean == 0.0 else mean + WEIGHT * (sample - mean)


class Rates:
    """Zero means not known yet."""

    __slots__ = ("decode_itl_s", "prefill_tokens_per_s", "ttft_ewma_s")

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_itl_s = 0.0
        self.ttft_ewma_s = 0.0

    def first_byte(self, ttft_s: float, tokens_ahead: int) -> None:
        """tokens_ahead: uncached prompt tokens of this request and of those queued before it when it was sent."""
        if ttft_s <= 0:
            return
        self.ttft_ewma_s = _blend(self.ttft_ewma_s, ttft_s)
        if tokens_ahead >= PREFILL_TOKENS_MIN:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, tokens_ahead / ttft_s)

    def gap(self, itl_s: float) -> None:
        """Mean gap between the tokens of one response."""
        if itl_s > 0:
            self.decode_itl_s = _blend(self.decode_itl_s, itl_s)

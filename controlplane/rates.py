"""How fast one endpoint has been lately, learned from its own requests: exponentially weighted means.

The prefill speed is work in tokens over time, both summed and both forgotten at one pace: a quotient of sums, since
requests that an engine computes in one step get their first tokens at one moment, the first of them after all the time, the
others after none.
"""

from __future__ import annotations

WEIGHT = 0.1
"""Of the newest sample. Twenty requests after a change of speed the mean has moved by 88 % of it."""
HOLD_WEIGHT = 0.03
"""Of the newest hold: answers differ in length far more than anything else here."""
STEP_QUICKER = 0.2
STEP_SLOWER = 0.01
"""Of the newest report's step, ten a second: what is followed is a step without prefill, whose time is counted apart."""
PREFILL_KEPT = 0.97
"""Of the sums of prefill tokens and times, with each first byte: 23 requests halve what was before."""
PREFILL_TOKENS_MIN = 64
"""A first byte that had less to compute says more about overheads than about prefill speed."""


def _blend(mean: float, sample: float) -> float:
    return sample if mean == 0.0 else mean + WEIGHT * (sample - mean)


class Rates:
    """Zero means not known yet."""

    __slots__ = (
        "_prefill_s",
        "_prefill_work",
        "answer_share",
        "answer_tokens",
        "decode_itl_s",
        "hold_s",
        "prefill_tokens_per_s",
        "ttft_ewma_s",
    )

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self._prefill_work = 0.0
        self._prefill_s = 0.0
        self.decode_itl_s = 0.0
        self.ttft_ewma_s = 0.0
        self.hold_s = 0.0
        self.answer_tokens = 0.0
        self.answer_share = 1.0  # of the callers' bounds

    def first_byte(
        self, ttft_s: float, *, work: float, service_s: float, tokens_ahead: int, queued_for_a_seat: bool = False
    ) -> None:
        """work: of this request's prompt, as contract.features.prefill_work has it; service_s: what of its time did not pass
        behind others' first bytes; tokens_ahead: of this request and of those queued before it when it was sent;
        queued_for_a_seat: so it waited for an answer to end, which says nothing of prefill.
        """
        if ttft_s <= 0:
            return
        self.ttft_ewma_s = _blend(self.ttft_ewma_s, ttft_s)
        if tokens_ahead >= PREFILL_TOKENS_MIN and not (queued_for_a_seat and self.prefill_tokens_per_s):
            self._prefill_work = PREFILL_KEPT * self._prefill_work + work
            self._prefill_s = PREFILL_KEPT * self._prefill_s + (service_s if service_s > 0.0 else 0.0)
            if self._prefill_s > 0:
                self.prefill_tokens_per_s = self._prefill_work / self._prefill_s

    def gap(self, itl_s: float) -> None:
        """Mean gap between the tokens of one response."""
        if itl_s > 0:
            self.decode_itl_s = _blend(self.decode_itl_s, itl_s)

    def told(self) -> tuple[float, ...]:
        """For another control plane's `adopt`."""
        return tuple([getattr(self, name) for name in self.__slots__])

    def adopt(self, told: tuple[float, ...]) -> None:
        """What another one has learned, in place of what was. Of another build's figures nothing is taken."""
        if len(told) == len(self.__slots__):
            for name, value in zip(self.__slots__, told, strict=True):
                setattr(self, name, value)

    def expected_tokens(self, max_tokens: int) -> float:
        """Of an answer of at most so many (0: no bound); 0 until anything is known."""
        return self.answer_share * max_tokens if max_tokens else self.answer_tokens

    def held(self, hold_s: float, *, tokens: int, max_tokens: int) -> None:
        """From one response's first token to its end; tokens: of the answer, not above 0 where nobody said."""
        if hold_s > 0:
            self.hold_s += (HOLD_WEIGHT if self.hold_s else 1.0) * (hold_s - self.hold_s)
        if tokens > 0:
            self.answer_tokens += (HOLD_WEIGHT if self.answer_tokens else 1.0) * (tokens - self.answer_tokens)
            if max_tokens:
                share = tokens / max_tokens if tokens < max_tokens else 1.0
                self.answer_share += HOLD_WEIGHT * (share - self.answer_share)


class StepClock:
    """Counts an engine's decode steps by the tokens it says it has made: every running answer gets one a step."""

    __slots__ = ("_at", "_running", "_steps", "_tokens", "step_s")

    def __init__(self) -> None:
        self.step_s = 0.0
        self._steps = 0.0
        self._at = 0.0
        self._tokens = 0
        self._running = 0

    def reported(self, tokens: int, running: int, at: float) -> None:
        """tokens: made since the engine's start; running: answers now; at: when both were true."""
        passed_s, answers = at - self._at, (running + self._running) / 2
        if self._at and passed_s > 0 and answers and tokens > self._tokens:
            steps = (tokens - self._tokens) / answers
            self._steps += steps
            step_s = passed_s / steps
            weight = STEP_QUICKER if step_s < self.step_s else STEP_SLOWER
            self.step_s += (weight if self.step_s else 1.0) * (step_s - self.step_s)
        if passed_s > 0:
            self._at, self._tokens, self._running = at, tokens, running

    def at(self, now: float) -> float:
        """Steps at a moment after the latest report; the clock begins anywhere above 0."""
        return 1.0 + self._steps + ((now - self._at) / self.step_s if self._running and self.step_s else 0.0)

"""How fast one endpoint has been lately, learned from its own requests: exponentially weighted means.

The prefill speed is that of one more token: the slope of a line through the work that an engine took up together and the time
it took for it. A quotient of work and time would charge the tokens with what every step costs beside them, and call an engine
half as fast when prompts are short. Requests that are computed in one step get their first tokens at one moment, the first
of them after all the time, the others after none: they are one point of the line.
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
"""Of the sums behind the line, with each step that brings first bytes: 23 of them halve what was before."""
PREFILL_TOKENS_MIN = 64
"""Before a first byte that had as much to compute, a speed would be one of overheads."""
TOGETHER_S = 0.002
"""First bytes this close to each other are of one step."""
FREE_START = 1.0
"""How many points' weight says that the line begins at 0: where all prompts are of one length it is the quotient."""
TOKEN_S_MIN = 1e-9
"""Less a token is no time that an engine took."""
SLOPE_MIN = 0.2
"""Of the quotient's slope: below, it is chance."""


_Line = tuple[float, float, float, float, float]


def _with(line: _Line, work: float, seconds: float) -> _Line:
    """One point more."""
    kept = PREFILL_KEPT
    count, works, times, squares, products = line
    return (
        kept * count + 1.0,
        kept * works + work,
        kept * times + seconds,
        kept * squares + work * work,
        kept * products + work * seconds,
    )


def _speed(line: _Line) -> float:
    """Tokens a second: what a token adds, between SLOPE_MIN of the quotient and the quotient. 0 where no work took any time."""
    count, works, times, squares, products = line
    if squares < 1.0 or products <= TOKEN_S_MIN * squares:
        return 0.0
    quotient = products / squares
    weight = count + FREE_START
    apart = weight * squares - works * works
    slope = (weight * products - works * times) / apart if apart > 0.0 else quotient
    return 1.0 / min(quotient, max(SLOPE_MIN * quotient, slope))


def _blend(mean: float, sample: float) -> float:
    return sample if mean == 0.0 else mean + WEIGHT * (sample - mean)


class Rates:
    """Zero means not known yet."""

    __slots__ = (
        "_line",
        "_together",
        "answer_share",
        "answer_tokens",
        "decode_itl_s",
        "hold_s",
        "prefill_tokens_per_s",
        "ttft_ewma_s",
    )

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self._line = (0.0, 0.0, 0.0, 0.0, 0.0)  # of the points before: how many, sums of work, time, work squared, both
        self._together = (0.0, 0.0)  # the latest point: work and time
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
        if queued_for_a_seat and self.prefill_tokens_per_s:
            return
        if not self.prefill_tokens_per_s and tokens_ahead < PREFILL_TOKENS_MIN:
            return
        before_work, before_s = self._together
        if service_s < TOGETHER_S and before_s:
            self._together = before_work + work, before_s
        else:
            if before_s:
                self._line = _with(self._line, before_work, before_s)
            self._together = work, max(0.0, service_s)
        self.prefill_tokens_per_s = _speed(_with(self._line, *self._together))

    def gap(self, itl_s: float) -> None:
        """Mean gap between the tokens of one response."""
        if itl_s > 0:
            self.decode_itl_s = _blend(self.decode_itl_s, itl_s)

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
                self.answer_share += HOLD_WEIGHT * (min(1.0, tokens / max_tokens) - self.answer_share)


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

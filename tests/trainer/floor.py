"""How much of TTFT no router can know: python -m tests.trainer.floor [PRESET]

An emulated engine with so many answers under way gets a prompt at a moment drawn evenly over its steps; everything else is the
same each time. What differs is where in its step the engine was, which nobody outside can see. Printed: the least mean absolute
percentage error that a prediction from outside can have, how far the p90 is above the median for that reason alone, and how
often the fastest of four prompts whose true TTFTs differ by more than 10 % can be told. What else arrives meanwhile comes on
top.
"""

from __future__ import annotations

import sys
from array import array
from random import Random

import numpy as np

from emulator.engine import Engine
from emulator.presets import PRESETS, Preset
from emulator.sequence import Request
from prediction import scores

ANSWERS = (0, 4, 32, 128)
PROMPTS = (64, 256, 1_024, 4_096)
DRAWS = 60
SAMPLES = 400
LONGEST = 8_192


def engine_of(preset: Preset) -> Engine:
    return Engine(preset.config(), preset.batching)


def request(name: str, tokens: int, answer: int, rng: Random) -> Request:
    prompt = array("I", [rng.randrange(512, 8_000) for _ in range(tokens)]).tobytes()
    return Request(request_id=name, prompt=prompt, max_tokens=answer, ignore_eos=True)


class Busy:
    """An engine with so many answers under way, which do not end."""

    def __init__(self, preset: Preset, answers: int, rng: Random) -> None:
        self._preset, self._rng = preset, rng
        self._engine, self._now, self._asked = engine_of(preset), 0.0, 0
        for number in range(answers):
            self._engine.add(request(f"a{number}", 128, 3_500, rng), 0.0)
        for _ in range(30 if answers else 0):  # until all of them decode
            self._step()

    def _step(self) -> set[str]:
        result = self._engine.step(self._now)
        self._now += result.duration_s
        return {output.sequence.request.request_id for output in result.outputs}

    def ttft_s(self, prompt: int, phase: float) -> float:
        """Of one more, that comes in this moment of a step, 0 to 1."""
        self._asked += 1
        name, began = f"q{self._asked}", self._now
        if self._engine.has_work:
            self._step()
        arrived = began + phase * (self._now - began)
        self._engine.add(request(name, prompt, 1, self._rng), arrived)
        while name not in self._step():
            pass
        return self._now - arrived + self._preset.batching.request_s


def ranked(busy: Busy, longest: int, rng: np.random.Generator) -> float:
    """How often who knows all but the moment in the step names the fastest of CANDIDATES prompts of log-uniform lengths."""
    prompts = [int(tokens) for tokens in np.exp(rng.uniform(np.log(16), np.log(longest), SAMPLES))]
    truth = np.array([busy.ttft_s(prompt, rng.random()) for prompt in prompts])
    known = np.array([busy.ttft_s(prompt, 0.5) for prompt in prompts])
    sets = scores.candidate_sets(truth, np.zeros(SAMPLES), rng)
    return float(np.mean(known[sets].argmin(axis=1) == truth[sets].argmin(axis=1)))


def main() -> None:
    preset = PRESETS[sys.argv[1] if len(sys.argv) > 1 else "llama3-8b-h100"]
    longest = min(LONGEST, preset.max_model_len - 64)
    for answers in ANSWERS:
        if answers >= preset.max_num_seqs:
            continue
        rng = np.random.default_rng(answers)
        busy = Busy(preset, answers, Random(answers))
        told = ranked(busy, longest, rng)
        print(f"{answers} answers under way: the fastest of {scores.CANDIDATES} is known {told:.1%} of the time")
        for prompt in PROMPTS:
            if prompt <= longest:
                drawn = np.array([busy.ttft_s(prompt, rng.random()) for _ in range(DRAWS)])
                best = min(float(np.mean(np.abs(guess - drawn) / drawn)) for guess in np.quantile(drawn, np.linspace(0, 1, 41)))
                upper = float(np.quantile(drawn, 0.9) / np.median(drawn))
                middle_ms = np.median(drawn) * 1000
                print(f"  {prompt:5} tokens: {middle_ms:6.1f} ms, least MAPE {best:.1%}, p90 over median {upper:.2f}")


if __name__ == "__main__":
    main()

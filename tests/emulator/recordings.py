"""Recordings made by the emulator itself, so that the truth about engine and machine is known."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable

import numpy as np

from emulator.fidelity.recording import Recording
from emulator.fidelity.replay import Clockwork, replay, retimed
from emulator.presets import TINY_CPU

RUN_S = 40.0
"""Runs begin this far apart: each finds an idle engine."""


def arrivals(num_runs: int, per_run: int, *, rate: float = 3.0, seed: int = 5) -> Recording:
    """Requests at random, that share nothing; their timings are still to come."""
    rng = random.Random(seed)
    send_s, prompts, max_tokens, runs = [], [], [], []
    for run in range(num_runs):
        at = RUN_S * run
        for _ in range(per_run):
            send_s.append(at)
            prompts.append(array("I", [rng.randrange(8_000) for _ in range(rng.randrange(32, 1_500))]).tobytes())
            max_tokens.append(rng.randrange(8, 64))
            runs.append(run)
            at += rng.expovariate(rate)
    nothing = np.zeros(len(prompts))
    return Recording(
        levels=[f"poisson_{run % 2 + 1}" for run in runs],
        runs=np.array(runs),
        send_s=np.array(send_s),
        prompts=prompts,
        max_tokens=np.array(max_tokens),
        cached_tokens=nothing.astype(np.int64),
        ttft_s=nothing,
        itl_s=nothing,
        tpot_s=nothing,
        prefill_s=nothing,
        e2e_s=nothing,
        other_cpu=nothing,
    )


def recorded(asked: Recording, machine: Callable[[], Clockwork], latency: object = TINY_CPU.batching) -> Recording:
    """What a client would have written down had `tiny-cpu` run on this machine."""
    return retimed(asked, replay(asked, TINY_CPU, latency, machine()))  # type: ignore[arg-type]

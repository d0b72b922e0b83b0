"""A recording's arrivals through the engine core in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from emulator.engine import Engine
from emulator.fidelity.recording import Floats, Ints, Recording
from emulator.latency import Latency
from emulator.presets import Preset
from emulator.sequence import Request


class Clockwork(Protocol):
    def end_s(self, begin_s: float, work_s: float) -> float:
        """When work begun at `begin_s` is done."""


class Undisturbed:
    """A machine that is always as fast as the preset says."""

    def end_s(self, begin_s: float, work_s: float) -> float:
        return begin_s + work_s


@dataclass(frozen=True, slots=True)
class Timings:
    """By request, in seconds, as `Recording` has them."""

    ttft_s: Floats
    itl_s: Floats
    tpot_s: Floats
    prefill_s: Floats
    cached_tokens: Ints


def engine_of(preset: Preset, latency: Latency) -> Engine:
    return Engine(preset.config(), latency)


def replay(recording: Recording, preset: Preset, latency: Latency, machine: Clockwork) -> Timings:
    """Every request at its recorded time, with its recorded prompt and answer length, on one engine."""
    engine = engine_of(preset, latency)
    count = len(recording)
    order = np.argsort(recording.send_s, kind="stable").tolist()
    send_s = recording.send_s.tolist()
    max_tokens = recording.max_tokens.tolist()
    token_s: list[list[float]] = [[] for _ in range(count)]
    scheduled_s = np.zeros(count)
    cached = np.zeros(count, dtype=np.int64)
    now, place = 0.0, 0
    while place < count or engine.has_work:
        if not engine.has_work:
            now = max(now, send_s[order[place]])
        while place < count and send_s[order[place]] <= now:
            index = order[place]
            engine.add(Request(str(index), recording.prompts[index], max_tokens[index], ignore_eos=True), send_s[index])
            place += 1
        result = engine.step(now)
        now = machine.end_s(now, result.duration_s)
        for sequence, _, finish in result.outputs:
            index = int(sequence.request.request_id)
            token_s[index].append(now)
            if finish is not None:
                scheduled_s[index] = sequence.scheduled_s
                cached[index] = sequence.num_cached
    first_s = np.array([times[0] for times in token_s])
    gaps = [np.sort(np.diff(times)) if len(times) > 1 else np.array([np.nan]) for times in token_s]
    return Timings(
        ttft_s=first_s - recording.send_s,
        itl_s=np.array([gap[len(gap) // 2] for gap in gaps]),
        tpot_s=np.array([gap.mean() for gap in gaps]),
        prefill_s=first_s - scheduled_s,
        cached_tokens=cached,
    )


def retimed(recording: Recording, timings: Timings) -> Recording:
    """The same requests, as a client would have written them down had they taken these times."""
    return replace(
        recording,
        cached_tokens=timings.cached_tokens,
        ttft_s=timings.ttft_s,
        itl_s=timings.itl_s,
        tpot_s=timings.tpot_s,
        prefill_s=timings.prefill_s,
        e2e_s=timings.ttft_s + np.nan_to_num(timings.tpot_s) * (recording.max_tokens - 1),
    )

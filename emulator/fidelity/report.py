"""docs/fidelity.md: tables and the sentences around them, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emulator.fidelity.cpu import CONSTANTS, QUIET_CPU_MAX, Calibration, Level, constants_of
from emulator.fidelity.fleet import ALONE_RATES, Fleet
from emulator.fidelity.gpu import Gpu, Steps
from emulator.fidelity.machine import KNOTS_CPU
from emulator.fidelity.recording import Floats
from emulator.presets import LLAMA3_8B_H100, TINY_CPU

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Cpu:
    """Everything about the CPU recording."""

    validated: list[Level]
    """Constants from the other half of the levels, contention, run speeds; odd requests."""
    quiet: list[Level]
    """The same on quiet runs."""
    shipped: list[Level]
    """The preset and nothing else; quiet runs, all requests."""
    sensitivity: Mapping[str, float]
    calibrations: Sequence[Calibration]
    quiet_speeds: Floats
    cached_equal: float


def render(cpu: Cpu, gpu: Gpu, steps: Sequence[Steps], fleet: Fleet) -> str:
    return "\n".join([_HEAD, _cpu(cpu), _h100(gpu, steps), _fleet(fleet), _TAIL])


_HEAD = """# How close the emulator is

Written by `python -m emulator.fidelity DATA`, which replays recordings of real engines through the emulator's engine core in
virtual time. Ratios are emulated / recorded: 1.00 is equal, 0.90 is 10 % too fast. DATA is not needed to run anything else.
"""


def _cpu(cpu: Cpu) -> str:
    met = [level.name for level in cpu.validated if level.within]
    missed = [level.name for level in cpu.validated if not level.within]
    still = [level.name for level in cpu.quiet if level.within]
    noisy = [level.name for level in cpu.quiet if not level.within]
    bare = sum(level.within for level in cpu.shipped)
    low, high = float(cpu.quiet_speeds.min()), float(cpu.quiet_speeds.max())
    spread = float(np.std(np.log(cpu.quiet_speeds)))
    return f"""## `tiny-cpu` and a real vLLM on the CPU

Source: `vllm_real/profile_cpu.csv`, 2,383 requests at vLLM 0.32 with a 32 M parameter Llama, 22 load levels, three runs each.
Every request is replayed at its recorded time with its recorded prompt: the recording client's seeded stream is drawn again and
agrees with all 2,383 recorded lengths, and the emulator's prefix cache gives exactly the recorded `cached_tokens` for
{cpu.cached_equal:.1%} of them.

**Target: TTFT p50 and p90 within 15 %, ITL p50 within 10 %, at every level.** Met at {len(met)} of {len(cpu.validated)} levels over
all runs, and at {len(still)} of the {len(cpu.quiet)} levels that have a quiet run (other processes used less than {QUIET_CPU_MAX} of two
cores). Missed over all runs: {_names(missed)}; on quiet runs: {_names(noisy)}. The preset alone, told nothing about the machine,
meets it at {bare} of {len(cpu.shipped)} on the quiet runs.

![ratios by level](figures/fidelity_cpu_levels.png)

| level | requests | cores used by others | TTFT p50: recorded, ratio | TTFT p90: recorded, ratio | ITL p50: recorded, ratio | target | quiet runs: TTFT p50, p90, ITL |
|---|---|---|---|---|---|---|---|
{_level_rows(cpu.validated, cpu.quiet)}

What is compared was not fitted: the constants for each half of the levels come from the other half, and the levels are compared
on requests with odd numbers only. Two things about the machine are given to the emulator, because they are no property of an
engine: what other processes used (`other_cpu`, recorded per request; what it costs is fitted with the constants), and one speed a
run, from that run's requests with even numbers.

![distributions](figures/fidelity_cpu_distributions.png)

### What the real engine does that the model had missed

* Decoding reads its context, at {TINY_CPU.batching.context_s_per_token * 1e6:.2f} us a token: eight sequences of 700 tokens add
  {8 * 700 * TINY_CPU.batching.context_s_per_token * 1e3:.1f} ms to every step. The idle recordings, with short contexts, had suggested an eighth of that.
* {TINY_CPU.batching.request_s * 1e3:.1f} ms of every TTFT are the API server's and hold up no other request; they used to be part of a step.
* Not needed: a cost per starting sequence beside the one per step that has any, a cost per chunk, a decode cost that grows faster
  than the number of sequences. Each was tried and left the loss where it was.

### What limits the comparison

* The machine itself. Quiet runs of the same server differ in speed by {low:.2f} to {high:.2f} (standard deviation {spread:.1%}), and near
  saturation a per cent of speed is worth several of TTFT, below. Where the product of both passes 15 %, no model that does not know
  the machine's speed can meet the target, however right it is.
* Contention comes and goes within a second; the recording averages it over each request's life. A median ITL of a run that was
  stalled for seconds and fast in between says little about either state: this is where ITL is missed.
* `poisson_0.7` has 16 requests.

| level | per cent of TTFT p50 for one per cent of speed | x {spread:.1%} | preset alone, quiet runs: TTFT p50, p90, ITL |
|---|---|---|---|
{_limit_rows(cpu, spread)}

Constants fitted on each half of the levels (three runs of every level), and the preset, which is fitted on all:

| constant | half A | half B | preset |
|---|---|---|---|
{_constant_rows(cpu.calibrations)}

Contention, fitted: {_curve(cpu.calibrations)}.
"""  # noqa: E501


def _level_rows(levels: Sequence[Level], quiet: Sequence[Level]) -> str:
    still = {level.name: level for level in quiet}
    lines = []
    for level in levels:
        seconds, ratios = level.recorded, level.ratios
        cells = [f"{_ms(second)}, {ratio:.2f}" for second, ratio in zip(seconds, ratios, strict=True)]
        beside = still.get(level.name)
        aside = ", ".join(f"{ratio:.2f}" for ratio in beside.ratios) if beside else "none was quiet"
        met = "met" if level.within else "missed"
        lines.append(f"| {level.name} | {level.requests} | {level.other_cpu:.2f} | {' | '.join(cells)} | {met} | {aside} |")
    return "\n".join(lines)


def _limit_rows(cpu: Cpu, spread: float) -> str:
    lines = []
    for level in cpu.shipped:
        share = abs(cpu.sensitivity[level.name])
        ratios = ", ".join(f"{ratio:.2f}" for ratio in level.ratios)
        lines.append(f"| {level.name} | {share:.1f} | {share * spread:.0%} | {ratios} |")
    return "\n".join(lines)


def _constant_rows(calibrations: Sequence[Calibration]) -> str:
    columns = [constants_of(one.latency) for one in calibrations] + [constants_of(TINY_CPU.batching)]
    return "\n".join(
        f"| `{name}` | {' | '.join(f'{column[index]:.3g}' for column in columns)} |" for index, name in enumerate(CONSTANTS)
    )


def _curve(calibrations: Sequence[Calibration]) -> str:
    means = np.mean([one.curve for one in calibrations], axis=0)
    return ", ".join(f"{cpu} cores of two taken by others x{cost:.1f}" for cpu, cost in zip(KNOTS_CPU[1:], means, strict=True))


def _h100(gpu: Gpu, steps: Sequence[Steps]) -> str:
    latency, low, high = LLAMA3_8B_H100.batching, *np.quantile(gpu.grid_ratios, (0.1, 0.9))
    sections = "\n".join(
        f"| {one.model} | {len(one.recorded_s)}, {one.prefills} | {_quantile_cells(one.recorded_s, one.computed_s, 1e3)} |"
        for one in steps
    )
    return f"""## `llama3-8b-h100`: kernels, engines, steps

No recording has Llama-3.1-8B on an H100, so the preset is put together: every kernel of a step from vLLM 0.24's timings on an H100
SXM, summed over 32 layers, times what an engine's step takes over its kernels. That factor, **{gpu.factor:.2f}**, is measured where both
are known: layer timings of Llama-3.1-8B on an RTX PRO 6000 beside 300 ShareGPT requests at vLLM 0.19 there. It is chosen so that the
median time per output token agrees; TTFT is then compared.

![ShareGPT](figures/fidelity_sharegpt.png)

| RTX PRO 6000, recorded / emulated | {" | ".join(f"p{share * 100:.0f}" for share in QUANTILES)} |
|---|{"---|" * len(QUANTILES)}
| TTFT (s) | {_quantile_cells(gpu.run.ttft_s, gpu.emulated.ttft_s)} |
| time per output token (ms) | {_quantile_cells(gpu.run.tpot_s, gpu.emulated.tpot_s, 1e3)} |

The first requests find a server that has just started; that, and 20 ms that a chunk beside few sequences takes over its kernels, is
the low end of TTFT. The step model's constants follow the H100 kernel sums within {low:.2f} to {high:.2f} (p10 to p90 over a grid of batches from one
decoding sequence to chunks of 8,192 behind 8,192 tokens of context).

The same sums and factor for other models on H100s, against recorded scheduler steps (time from scheduling one step to scheduling
the next, where both were recorded; `cycle_time_us` of that file is about half of it and shorter than the weights take to read, so
it cannot be a step's time):

![H100 steps](figures/fidelity_h100_steps.png)

| recorded / computed, ms | steps, with prefill | {" | ".join(f"p{share * 100:.0f}" for share in QUANTILES)} |
|---|---|{"---|" * len(QUANTILES)}
{sections}

Missing in the sums: all-reduce between GPUs (160 a step for the 70B), which an 8B model on one GPU does not have. Not compared:
large prefills (two of the recorded steps have more than 256 prompt tokens), and TTFT of an 8B model on an H100 (no recording).
The preset's `request_s`, {latency.request_s * 1e3:.2f} ms, is the median of what is neither queue nor prefill in traces of a vLLM with a 7B model (GPU not stated).
"""  # noqa: E501


def _fleet(fleet: Fleet) -> str:
    rows = "\n".join(
        f"| {rate.qps} | {len(rate.recorded_s)} | {_quantile_cells(rate.recorded_s, rate.emulated_s)} |" for rate in fleet.rates
    )
    return f"""## Eight Llama-3.1-8B workers: TTFT of every request

Source: `routing_8x_llama8b_multi_round_qa.csv.gz`, setup `naive` (a plain service in front of vLLM 0.8.5). The GPUs were A100 or H20, not
H100: at the rates {", ".join(map(str, ALONE_RATES))}/s, where requests are alone, prefill took {fleet.prefill:.1f} times and decoding {fleet.decode:.1f} times what the preset
says, and the preset is slowed by that. At the rates below requests meet. Which replica served which request was not recorded; the
emulated fleet draws it (three draws, pooled), and prompts are made up with the recorded lengths and the described sharing.

![fleet](figures/fidelity_fleet.png)

| requests/s | requests | {" | ".join(f"p{share * 100:.0f}" for share in QUANTILES)} (s, recorded / emulated) |
|---|---|{"---|" * len(QUANTILES)}
{rows}

From 2.9/s on the fleet is overloaded and both queues grow alike. In between the tail depends on the draw: one replica with two
requests more is a second more. Not compared: the other five setups. Two keep KV outside the GPU and one pins users to replicas
and does both, which the emulator has no counterpart for; the two gateway setups route by rules that the recording does not state.
"""  # noqa: E501


_TAIL = """## Not measured

`llama2-13b-a100-40gb`: memory is exact by its shape; its times are derived from the device's data sheet, and no recording of such an
engine was at hand. A lent GPU would allow prefill and decode of random-weight shapes to be measured directly; none was.
"""  # noqa: E501


def _quantile_cells(recorded: Floats, emulated: Floats, scale: float = 1.0) -> str:
    pairs = zip(np.quantile(recorded, QUANTILES) * scale, np.quantile(emulated, QUANTILES) * scale, strict=True)
    return " | ".join(f"{a:.3g} / {b:.3g}" for a, b in pairs)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.02 else f"{seconds * 1e3:.1f} ms"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"

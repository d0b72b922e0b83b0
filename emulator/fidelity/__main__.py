"""`python -m emulator.fidelity DATA [--docs DIR] [--fit]`: how far the emulator is from recorded engines.

DATA holds `vllm_real/profile_cpu.csv` and `data/profiling/`. Writes DIR/fidelity.md and its figures; with --fit it only fits
the presets' constants on everything, and prints them with their residuals. A few minutes of CPU time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emulator.fidelity import compare, cpu, figures, fleet, gpu, noise, recording
from emulator.fidelity.recording import Recording, RecordingError
from emulator.fidelity.report import Cpu, render
from emulator.presets import TINY_CPU

SHOWN = ("closed_4", "closed_8", "closed_32", "poisson_4.5", "burst_40")
"""Levels whose distributions are drawn: some that meet the target, some that do not."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m emulator.fidelity", description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with vllm_real/ and data/profiling/")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where fidelity.md goes (default %(default)s)")
    parser.add_argument("--fit", action="store_true", help="fit the presets' constants and print them")
    args = parser.parse_args(argv)
    try:
        recorded = recording.read(args.data / "vllm_real" / "profile_cpu.csv")
        if args.fit:
            _fit(recorded, args.data / "data" / "profiling")
        else:
            _report(recorded, args.data / "data" / "profiling", args.docs)
    except (RecordingError, OSError) as error:
        print(f"emulator.fidelity: {error}", file=sys.stderr)
        return 2
    return 0


def _fit(recorded: Recording, profiling: Path) -> None:
    print("tiny-cpu")
    print(cpu.describe(cpu.calibrate(recorded, frozenset(recorded.levels))), flush=True)
    found = gpu.measure(profiling)
    low, high = np.quantile(found.grid_ratios, (0.1, 0.9))
    print(f"llama3-8b-h100: kernels x {found.factor:.3f}; fitted over summed {low:.2f} to {high:.2f} (p10 to p90)")
    for name in found.preset.__dataclass_fields__:
        print(f"  {name} = {getattr(found.preset, name):.4g}")


def _report(recorded: Recording, profiling: Path, docs: Path) -> None:
    drawn = docs / "figures"
    about_cpu = _cpu(recorded)
    figures.levels(drawn / "fidelity_cpu_levels.png", about_cpu.over_time, about_cpu.by_run)
    figures.distributions(drawn / "fidelity_cpu_distributions.png", recorded, about_cpu.draws, SHOWN)
    about_gpu = gpu.measure(profiling)
    about_steps = gpu.steps(profiling, about_gpu.factor)
    about_fleet = fleet.measure(profiling)
    figures.sharegpt(drawn / "fidelity_sharegpt.png", about_gpu)
    figures.steps(drawn / "fidelity_h100_steps.png", about_steps)
    figures.fleet(drawn / "fidelity_fleet.png", about_fleet)
    (docs / "fidelity.md").write_text(render(about_cpu, about_gpu, about_steps, about_fleet), encoding="utf-8")
    print(
        f"{docs / 'fidelity.md'}: {sum(level.within for level in about_cpu.over_time)} of {len(about_cpu.over_time)} levels met"
    )


def _cpu(recorded: Recording) -> Cpu:
    everything = np.ones(len(recorded), dtype=np.bool_)
    odd, quiet = cpu.left_out(recorded), compare.quiet(recorded)
    found = cpu.validate(recorded)
    shipped = [cpu.as_shipped(recorded)]
    curve = np.mean([one.curve for one in found.calibrations], axis=0)
    return Cpu(
        draws=found.over_time,
        over_time=compare.compare(recorded, found.over_time, everything),
        by_run=compare.compare(recorded, [found.by_run], odd),
        by_run_quiet=compare.compare(recorded, [found.by_run], odd & quiet),
        shipped=compare.compare(recorded, shipped, quiet),
        repeats=compare.repeats(recorded, everything),
        apart=compare.apart(recorded, shipped[0], everything),
        controls=cpu.controls(recorded, curve),
        sensitivity=cpu.sensitivity(recorded, TINY_CPU.batching, quiet),
        calibrations=found.calibrations,
        quiet_speeds=found.speeds[np.unique(recorded.runs[quiet])],
        cached_equal=float(np.mean(shipped[0].cached_tokens == recorded.cached_tokens)),
        errors=compare.errors(recorded, found.over_time),
        known=noise.bounds(recorded),
        halves=noise.halves(recorded),
        perfect=cpu.perfect(recorded, curve, found.speeds),
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())

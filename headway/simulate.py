"""`headway simulate [TRACE]`: routing policies compared on a trace, with the real cores in virtual time.

Nothing is started and nothing is sent: engines, agents' block sets and the control plane run in this process (one process a
policy), from one seed, so that the same command gives the same figures. What must hold is checked all along; a violation is
printed with its seed and ends the run with code 1.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from controlplane.profiles import DEFAULT, NAMES
from controlplane.ranks import AUTO, OFF, Steering, steered, together
from emulator.presets import PRESETS
from headway import simulate_experiments
from headway.arguments import new_file, new_svg, positive, whole
from headway.errors import UsageError, said
from loadgen import arrivals, generators, traces
from loadgen.errors import LoadError
from loadgen.report import duration, percent
from loadgen.rows import Trace
from loadgen.workload import Shape
from runtime import rng
from simulation import faults
from simulation.checks import Violation
from simulation.figure import ttft_cdf
from simulation.fleets import LEARN
from simulation.learning import Learning
from simulation.parallel import ChildDied, play
from simulation.replicas import Sharing
from simulation.summary import Figures, figures
from simulation.workload import jobs
from simulation.world import Report, Setup, with_cache

SAMPLES = {"sample": "sample_mooncake.jsonl.gz", "sample-conversations": "sample_conversations.jsonl.gz"}
POLICIES = "round_robin,least_load,weighted,lmetric"
RATE_DEFAULT = "4"
"""Requests a second, where a workload does not know its own times."""
WORKERS_MAX = 4_096
CONTROLS_MAX = 8
RANKS_MAX = 16
TABLE_WIDTH = 120
"""What a row may take; narrower terminals wrap it, nothing is cut."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trace",
        nargs="?",
        default="sample",
        metavar="TRACE",
        help=f"a trace file as for `headway replay`; {' or '.join(SAMPLES)} (shipped; default sample); "
        f"or made up: {', '.join(generators.NAMES)}",
    )
    _add_fleet(parser.add_argument_group("fleet"))
    _add_timing(parser.add_argument_group("when"))
    _add_content(parser.add_argument_group("what"))
    _add_run(parser.add_argument_group("run"))


def _add_fleet(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--policies", default="", metavar="A,B,...", help=f"or: all (default: {POLICIES})")
    group.add_argument("--workers", type=whole, default=4, help="default %(default)s")
    group.add_argument("--preset", choices=PRESETS, default="llama3-8b-h100", help="default %(default)s")
    group.add_argument("--latency", choices=("batching", "formula"), default="batching", help="default %(default)s")
    group.add_argument(
        "--slow", default="", metavar="N:FACTOR,...", help="workers whose every step takes FACTOR times as long: 0:2.5,1:2.5"
    )
    group.add_argument(
        "--cache", default="", metavar="N:SHARE,...", help="workers with that share of the preset's KV blocks: 0:0.5,1:0.25"
    )
    group.add_argument("--controls", type=whole, default=1, help="control planes, between which requests fall by chance (1)")
    group.add_argument(
        "--sharing",
        default="all,none",
        metavar="A,B,...",
        help=f"with several, what they tell each other, a run each: of {', '.join(one.value for one in Sharing)} (all,none)",
    )
    group.add_argument("--ranks", type=whole, default=1, help="data-parallel engines of each worker, each as the preset (1)")
    group.add_argument(
        "--steer-ranks",
        default=AUTO,
        metavar="A,B",
        help=f"with several, whether requests name theirs, a run each: {AUTO} (yes: the default), {OFF} (engines balance)",
    )
    group.add_argument("--no-kv-events", action="store_true", help="the engines send none: the router has its guesses only")


def _add_timing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--speed", "--rate-factor", type=positive, default=1.0, help="recorded times, this much faster")
    group.add_argument("--smooth", action="store_true", help="spread requests recorded at one time up to the next")
    group.add_argument("--rate", help="requests a second instead of recorded times: 5, or 1-10:60 (ramp), or 2:30,8:30 (steps)")
    group.add_argument("--arrivals", choices=arrivals.PROCESSES, default="poisson", help="with --rate (default %(default)s)")
    group.add_argument("--cv", type=positive, default=2.0, help="of gamma gaps; above 1 is bursty (default 2)")


def _add_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--limit", type=whole, default=2000, help="first so many requests (default 2000)")
    group.add_argument("--scale", type=positive, default=1.0, help="of prompt and block lengths, e.g. 0.25 for smaller engines")
    group.add_argument("--output-scale", type=positive, help="of answers (default: as --scale)")
    group.add_argument("--slo-ttft-ms", type=positive, default=2000.0, help="goodput: the first token within this (2000)")
    group.add_argument("--send-slo", action="store_true", help="tell the router, which may then refuse what it cannot keep")


def _add_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    group.add_argument(
        "--experiment",
        choices=simulate_experiments.NAMES,
        help="fixed fleets and workloads instead of TRACE; options that count: --policies (fleets), --plot (slowdown), "
        "--no-kv-events (replicas), --seed, --seeds, --jobs, --json",
    )
    group.add_argument("--seeds", type=whole, default=simulate_experiments.SEEDS_DEFAULT, help="of an experiment (default 4)")
    group.add_argument("--faults", type=int, default=0, metavar="N", help="so many of all kinds, drawn from the seed")
    group.add_argument(
        "--train-every-s", type=positive, default=60.0, metavar="S", help="virtual seconds from model to model (default 60)"
    )
    group.add_argument("--check", action="store_true", help="follow every block, too (implied by --faults); slower")
    group.add_argument("--jobs", type=whole, default=0, help="processes (default: one a policy, up to the number of cores)")
    group.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    group.add_argument("--plot", type=new_svg, metavar="FILE.svg", help="draw the TTFT distributions there")


def run(args: argparse.Namespace) -> int:
    """0: done; 1: an invariant does not hold. UsageError: it could not begin."""
    if args.experiment:
        return simulate_experiments.run(args, _policies(args.policies or ",".join(simulate_experiments.POLICIES)))
    console = Console(stderr=True)
    try:
        trace = _read_trace(args)
        setups, unfit = _setups(args, trace)
    except (LoadError, ValueError) as error:
        raise UsageError(f"simulate: {error}") from None
    if unfit:
        console.print(
            f"{unfit} of {unfit + len(setups[0].jobs)} requests do not fit the model and are left out", style="yellow"
        )
    try:
        reports = _play(setups, args.jobs or min(len(setups), os.cpu_count() or 1), console)
    except Violation as violation:
        console.print(f"VIOLATION  {violation}", style="bold red", markup=False)
        return 1
    except ChildDied as error:
        console.print(f"simulate: {error}", style="bold red", markup=False)
        return 1
    names = [f"worker-{number}" for number in range(args.workers)]
    rows = [figures(report, slo_ttft_s=args.slo_ttft_ms / 1000, workers=names) for report in reports]
    _write(args, trace, rows, reports)  # before the table: whoever reads that may close the pipe early
    out = Console()
    out.width = max(out.width, TABLE_WIDTH)
    out.print(_table(rows))
    out.print(_legend(args, rows[0]), style="dim", highlight=False)
    return 0


def _read_trace(args: argparse.Namespace) -> Trace:
    text = args.trace
    if generators.is_generated(text):
        return generators.generate(text, limit=args.limit, rng=rng.stream(args.seed, "workload"))
    if text in SAMPLES:
        with resources.as_file(resources.files("loadgen").joinpath("data", SAMPLES[text])) as path:
            return traces.read(path, limit=args.limit)
    return traces.read(Path(text), limit=args.limit)


def _setups(args: argparse.Namespace, trace: Trace) -> tuple[list[Setup], int]:
    """One a policy; and how many requests no engine would take. UsageError, ValueError: values that make no sense."""
    if args.workers > WORKERS_MAX:
        raise UsageError(f"--workers: {args.workers} is above {WORKERS_MAX}")
    if args.ranks > RANKS_MAX:
        raise UsageError(f"--ranks: {args.ranks} is above {RANKS_MAX}")
    shape = Shape(model=PRESETS[args.preset].model, scale=args.scale, output_scale=args.output_scale or args.scale)
    cache = dict(_pairs("--cache", args.cache, args.workers))
    kept, unfit = jobs(trace.rows, iter(_times(args, trace)), shape, model_len_max=_model_len_max(args, cache))
    if not kept:
        raise UsageError(f"none of the {unfit} requests fits {args.preset}; try --scale 0.1")
    drawn = faults.draw(
        rng.stream(args.seed, "faults"), workers=args.workers, duration_s=kept[-1].at_s, count=max(0, args.faults)
    )
    common = Setup(
        jobs=kept,
        shape=shape,
        policy="",
        presets=(args.preset,) * args.workers,
        latency=args.latency,
        seed=args.seed,
        faults=faults.slow(_pairs("--slow", args.slow, args.workers)) + drawn,
        slo_ttft_ms=args.slo_ttft_ms if args.send_slo else 0.0,
        kv_events=not args.no_kv_events,
        deep=args.check or args.faults > 0,
        cache_shares=tuple(cache.get(number, 1.0) for number in range(args.workers)),
        ranks=args.ranks,
    )
    learning = Learning(every_s=args.train_every_s)
    setups = []
    for policy in _policies(args.policies or POLICIES):
        for steering in _steering(args):
            setup = replace(common, policy=policy, steering=steering, learning=learning if policy in LEARN else None)
            setups.append(setup)
            if args.controls > 1:
                setups += [replace(setup, controls=args.controls, sharing=sharing) for sharing in _sharing(args)]
    return setups, unfit


def _steering(args: argparse.Namespace) -> list[Steering]:
    known = {AUTO: steered, OFF: together}
    names = list(dict.fromkeys(name.strip() for name in args.steer_ranks.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"--steer-ranks: {name!r} is none of {', '.join(known)}")
    return [known[name] for name in names] if args.ranks > 1 else [steered]


def _sharing(args: argparse.Namespace) -> list[str]:
    known = [one.value for one in Sharing]
    names = [name.strip() for name in args.sharing.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"--sharing: {name!r} is none of {', '.join(known)}")
    if args.controls > CONTROLS_MAX or args.faults:
        raise UsageError(f"--controls: at most {CONTROLS_MAX}, and without --faults")
    return names


def _model_len_max(args: argparse.Namespace, cache: dict[int, float]) -> int:
    """Tokens that the largest worker takes."""
    presets = (with_cache(PRESETS[args.preset], cache.get(number, 1.0)) for number in range(args.workers))
    return max(preset.max_model_len for preset in presets)


def _times(args: argparse.Namespace, trace: Trace) -> list[float]:
    count = len(trace.rows)
    if args.rate or not trace.timed:
        profile = arrivals.parse_rate(args.rate or RATE_DEFAULT)
        times = arrivals.process(args.arrivals, profile, rng=rng.stream(args.seed, "arrivals"), cv=args.cv)
        return [at_s for _, at_s in zip(range(count), times, strict=False)]
    at_s = [row.at_s for row in trace.rows]
    return list(arrivals.recorded(arrivals.smooth(at_s) if args.smooth else at_s, speed=args.speed))


def _policies(text: str) -> list[str]:
    names = list(NAMES) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--policies: no policy {name!r}; there are {', '.join(NAMES)}")
    return list(dict.fromkeys(names)) or [DEFAULT]


def _pairs(option: str, text: str, workers: int) -> list[tuple[int, float]]:
    """Worker numbers with a factor each. UsageError: something else."""
    pairs = []
    for part in filter(None, text.split(",")):
        number, _, factor = part.partition(":")
        try:
            pair = int(number), float(factor)
        except ValueError:
            raise UsageError(f"{option}: {part!r} is not NUMBER:FACTOR") from None
        if not 0 <= pair[0] < workers or pair[1] <= 0:
            raise UsageError(f"{option}: {part!r}: workers are 0 to {workers - 1}, factors above 0")
        pairs.append(pair)
    return pairs


def _play(setups: Sequence[Setup], processes: int, console: Console) -> list[Report]:
    """All of them, `processes` at a time. Violation, ChildDied: of the first that has one."""
    with _bar(console) as progress:
        bars = [progress.add_task(setup.name, total=len(setup.jobs)) for setup in setups]
        return play(setups, processes, lambda place, ended: progress.update(bars[place], completed=ended))


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


# ------------------------------------------------------------------------------------------------------------------ results


def _table(rows: Sequence[Figures]) -> Table:
    """Columns in which nothing happened are left out."""
    best = min(rows, key=lambda row: (-row.goodput_share, row.ttft_s.p90 or 0.0))
    shown = [column for column in _COLUMNS if not column[2] or any(column[2](row) for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("policy", no_wrap=True)
    for name, _, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [cell(row) for _, cell, _ in shown]
        table.add_row(row.policy, *cells, style="bold" if row is best and len(rows) > 1 else "")
    return table


_COLUMNS: tuple[tuple[str, Callable[[Figures], str], Callable[[Figures], int] | None], ...] = (
    ("TTFT p50", lambda row: duration(row.ttft_s.p50), None),
    ("p90", lambda row: duration(row.ttft_s.p90), None),
    ("p99", lambda row: duration(row.ttft_s.p99), None),
    ("ITL p50", lambda row: duration(row.itl_s.p50), None),
    ("cached", lambda row: percent(row.cached_share), None),
    ("goodput", lambda row: percent(row.goodput_share), None),
    ("shed", lambda row: str(row.shed), lambda row: row.shed),
    ("failed", lambda row: str(row.broken), lambda row: row.broken),
    ("retried", lambda row: str(row.retried), lambda row: row.retried),
    ("unrouted", lambda row: str(row.fallbacks), lambda row: row.fallbacks),
    ("imbalance", lambda row: f"{row.imbalance:.2f}", None),
    ("wall", lambda row: f"{duration(row.wall_s)} ({row.speed:.0f}x)", None),
)


def _fleet(args: argparse.Namespace) -> str:
    return f"{args.workers} x {args.preset}" + (f" of {args.ranks} ranks" if args.ranks > 1 else "")


def _legend(args: argparse.Namespace, row: Figures) -> str:
    return (
        f"{row.requests} requests in {duration(row.virtual_s)} of virtual time on {_fleet(args)}, seed {args.seed}\n"
        f"goodput: TTFT within {duration(row.slo_ttft_s)}; imbalance: requests of the busiest worker over an equal share"
    )


def _write(args: argparse.Namespace, trace: Trace, rows: Sequence[Figures], reports: Sequence[Report]) -> None:
    writing: Path | None = None
    try:
        if args.json is not None:
            options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
            document = {"trace": trace.name, "options": options, "policies": rows}
            writing = args.json
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
        if args.plot is not None:
            writing = args.plot
            curves = {report.policy: [r.ttft_s for r in report.results if r.ttft_s >= 0] for report in reports}
            requests = {report.policy: len(report.results) for report in reports}
            title = f"{trace.name}: {rows[0].requests} requests on {_fleet(args)}"
            args.plot.write_text(
                ttft_cdf(curves, requests=requests, title=title, slo_s=args.slo_ttft_ms / 1000), encoding="utf-8"
            )
    except OSError as error:
        raise UsageError(f"simulate: {said(error, writing)}") from None

"""`headway simulate --experiment NAME`: fixed experiments with fleets and workloads of their own, over several seeds.

slowdown   half of a fleet becomes 2.5 times slower under load: how long until `predictive` is back, as a plot
fleets     policies on equal and unequal fleets, as a table
replicas   one control plane, and two that tell each other everything, their loads alone, or nothing
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headway.errors import UsageError
from loadgen.report import duration, percent
from simulation import fleets, slowdown
from simulation.checks import Violation
from simulation.parallel import ChildDied, play
from simulation.replicas import Sharing
from simulation.slowdown import LIVE, ORACLE, PLAIN, Slowdown
from simulation.slowdown_figure import slowdown_svg
from simulation.summary import Figures

NAMES = ("slowdown", "fleets", "replicas")
SEEDS_DEFAULT = 4
POLICIES = ("round_robin", "least_load", "weighted", "lmetric", "linear_online", "hierarchical", "predictive")
"""Of `fleets`, where none are named."""
WIDTH = 120


def run(args: argparse.Namespace, policies: Sequence[str]) -> int:
    """args: as `headway simulate` reads them. 0: done; 1: an invariant does not hold. UsageError: a file cannot be written."""
    console = Console(stderr=True)
    try:
        document = {"slowdown": _slowdown, "fleets": _fleets, "replicas": _replicas}[args.experiment](args, policies, console)
    except (Violation, ChildDied) as error:
        console.print(f"simulate: {error}", style="bold red", markup=False)
        return 1
    if args.json is not None:
        _write(args.json, msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
    return 0


def _processes(args: argparse.Namespace) -> int:
    return int(args.jobs or os.cpu_count() or 1)


def _seeds(args: argparse.Namespace) -> list[int]:
    return list(range(args.seed, args.seed + args.seeds))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"simulate: {error}") from None


class _Bar:
    """Of all requests of all runs. tell: as simulation.parallel.play calls it."""

    def __init__(self, console: Console, runs: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._runs = runs
        self._task = self._progress.add_task("", total=None)
        self._seen: set[int] = set()

    def __enter__(self) -> Callable[[int, int], None]:
        self._progress.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, place: int, _ended: int) -> None:
        self._seen.add(place)
        self._progress.update(self._task, description=f"run {len(self._seen)} of {self._runs}")


# ----------------------------------------------------------------------------------------------------------------- slowdown


def _slowdown(args: argparse.Namespace, _policies: Sequence[str], console: Console) -> object:
    experiment, seeds = Slowdown(), _seeds(args)
    with _Bar(console, slowdown.count(seeds)) as progress:
        outcome = slowdown.run(experiment, seeds, processes=_processes(args), progress=progress)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("TTFT p90", "before", "first 60 s", f"60 to {experiment.after_s:.0f} s", "over the oracle"):
        table.add_column(column, justify="left" if column == "TTFT p90" else "right")
    for curve in (LIVE, ORACLE, PLAIN):
        over = "" if curve == ORACLE else f"{outcome.settled_s[curve] / outcome.settled_s[ORACLE]:.2f} x"
        cells = (outcome.before_s[curve], outcome.first_s[curve], outcome.settled_s[curve])
        table.add_row(curve, *map(duration, cells), over, style="bold" if curve == LIVE else "")
    out = Console()
    out.width = max(out.width, WIDTH)
    out.print(table)
    fleet = f"{experiment.slowed} of {experiment.workers} x {experiment.preset} take {experiment.factor:g} times as long"
    out.print(
        f"{fleet} from one moment on, {experiment.rate:g} requests a second, seeds {seeds[0]} to {seeds[-1]}\n"
        f"predictive: model of the fleet as it was, corrected by first tokens alone; oracle: slow from the start and a model\n"
        f"trained on that state. Within 15 % of the oracle from 60 s on: {'yes' if outcome.met else 'no'}",
        style="dim",
        highlight=False,
    )
    if args.plot is not None:
        title = f"TTFT p90 when {fleet}"
        subtitle = (
            f"{experiment.rate:g} requests/s, {len(seeds)} seeds together, windows of {slowdown.WINDOW_S:.0f} s; band: "
            f"oracle + {slowdown.WITHIN_SHARE:.0%}"
        )
        _write(args.plot, slowdown_svg(outcome.points, title=title, subtitle=subtitle))
    return {"experiment": asdict(experiment), "outcome": outcome}


# ------------------------------------------------------------------------------------------------------------------- fleets


def _fleets(args: argparse.Namespace, policies: Sequence[str], console: Console) -> object:
    comparison, seeds = fleets.Comparison(), _seeds(args)
    cells = [(fleet, policy) for fleet in fleets.FLEETS for policy in policies]
    setups = [comparison.setup(fleet, policy, seed) for fleet, policy in cells for seed in seeds]
    with _Bar(console, len(setups)) as progress:
        reports = play(setups, _processes(args), progress)
    count = len(seeds)
    found = [
        (fleet, comparison.figures(fleet, reports[count * place : count * (place + 1)]))
        for place, (fleet, _) in enumerate(cells)
    ]
    out = Console()
    out.width = max(out.width, WIDTH)
    for fleet in fleets.FLEETS:
        out.print(_table(fleet, [row for other, row in found if other is fleet], comparison))
    out.print(
        f"{fleets.WORKERS} x {comparison.preset} (with two models half of them {fleets.OTHER})\n"
        f"at {comparison.load:.0%} of what each fleet can serve, seeds {seeds[0]} to {seeds[-1]} together; goodput: TTFT "
        f"within {duration(comparison.slo_s)}.\nCounted from the first model of TTFT on, which is trained in the run.",
        style="dim",
        highlight=False,
    )
    return [{"fleet": asdict(fleet), "figures": row} for fleet, row in found]


def _table(fleet: fleets.Fleet, rows: Sequence[Figures], comparison: fleets.Comparison) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=fleet.name, title_justify="left")
    table.add_column("policy", no_wrap=True, min_width=14)
    for name in ("requests", "TTFT p50", "p90", "p99", "cached", "goodput"):
        table.add_column(name, justify="right", no_wrap=True, min_width=9)
    best = min(rows, key=lambda row: row.ttft_s.p90 or 0.0)
    for row in rows:
        ttft = row.ttft_s
        cells = (str(row.requests), duration(ttft.p50), duration(ttft.p90), duration(ttft.p99))
        table.add_row(
            row.policy, *cells, percent(row.cached_share), percent(row.goodput_share), style="bold" if row is best else ""
        )
    return table


# ----------------------------------------------------------------------------------------------------------------- replicas

REPLICAS_S = 60.0
"""Of traffic, each seed."""


def _replicas(args: argparse.Namespace, _policies: Sequence[str], console: Console) -> object:
    """`lmetric` on the equal fleet; with two control planes requests fall between them by chance."""
    comparison, seeds, fleet = fleets.Comparison(duration_s=REPLICAS_S), _seeds(args), fleets.FLEETS[0]
    base = [replace(comparison.setup(fleet, "lmetric", seed), kv_events=not args.no_kv_events) for seed in seeds]
    setups = base + [replace(setup, controls=2, sharing=sharing.value) for sharing in Sharing for setup in base]
    with _Bar(console, len(setups)) as progress:
        reports = play(setups, _processes(args), progress)
    count = len(seeds)
    rows = [comparison.figures(fleet, reports[start : start + count], first_s=0.0) for start in range(0, len(setups), count)]
    out = Console()
    out.width = max(out.width, WIDTH)
    out.print(_table(fleet, rows, comparison))
    out.print(
        f"{fleets.WORKERS} x {comparison.preset} at {comparison.load:.0%} of what they can serve, "
        f"seeds {seeds[0]} to {seeds[-1]} together; goodput: TTFT within {duration(comparison.slo_s)}.\n"
        "x2: two control planes, and what they tell each other",
        style="dim",
        highlight=False,
    )
    return rows

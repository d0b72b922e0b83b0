"""`headway bench proxy`: CPU, throughput and added TTFT of our router beside others, interleaved, on this machine.

Everything is started here and ended again: scripted engines, Redis, our control plane and data plane, and whichever other
routers are installed. CPU time is read from /proc (user + system, children included); Redis, engines and load do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from random import Random

from rich.console import Console

from headway.arguments import new_file
from headway.bench_proxy import peers, programs, prompts, routers, table
from headway.bench_proxy.measure import AddedTtft, Measurement, Throughput
from headway.bench_proxy.processes import Process, free_ports
from headway.bench_proxy.programs import LoadFailed, Programs
from headway.bench_proxy.prompts import Scenario
from headway.bench_proxy.routers import Bench
from headway.errors import UsageError
from prediction.bundle import Bundle
from trainer.registry import Registry, RegistryError

SEED = 1
WIDTH = 150
SCENARIOS = ("small", "large", "chunks", "paced", "ttft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("proxy",), help="proxy: the cost of routing a request")
    parser.add_argument("--routers", default="all", metavar="A,B,...", help=f"of {', '.join(routers.NAMES)} (default: all)")
    parser.add_argument("--scenarios", default="small,chunks,paced,ttft", metavar="A,B,...", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=_count, default=5, help="runs of each router, the median counts (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run (default 2)")
    parser.add_argument("--clients", type=_count, default=64, help="connections (default 64)")
    parser.add_argument("--workers", type=_count, default=4, help="engines behind each router (default 4)")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a registry directory (`headway train --out`): headway-model: has its latest model",
    )
    parser.add_argument("--install-peers", action="store_true", help="install the other projects' routers first, by pip")
    parser.add_argument(
        "--json", type=_figures_file, metavar="FILE", help="write the figures there; - is standard output, without the table"
    )
    parser.add_argument("--keep", metavar="DIRECTORY", help="for configurations and logs, kept (default: temporary)")


def _figures_file(text: str) -> str:
    return text if text == "-" else str(new_file(text))


def run(args: argparse.Namespace) -> int:
    names = _chosen(args.routers, routers.NAMES, "router", routers.ON_REQUEST)
    wanted = _chosen(args.scenarios, SCENARIOS, "scenario")
    model = None if args.model is None else _model(args.model)
    if model is None and any(name.startswith("headway-model:") for name in names):
        raise UsageError("headway-model: which model? --model DIR names a registry")
    console = Console(width=WIDTH, stderr=args.json == "-")
    if args.install_peers:
        for peer in peers.PACKAGES:
            if any(name.startswith(peer) for name in names):
                try:
                    peers.install(peer)
                except peers.NotInstalled as error:
                    console.print(f"not installed: {error}", markup=False)
    with ExitStack() as stack:
        directory = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="hw-")))
        directory.mkdir(parents=True, exist_ok=True)
        built = programs.build(directory)
        first_port = free_ports(args.workers)
        engine = Process("engine", [*built.backend, str(first_port), str(args.workers)], directory)
        stack.callback(engine.end)
        engine.wait_for(first_port)
        engine_ports = [first_port + number for number in range(args.workers)]
        measurements = _measurements(args, wanted, directory, built, first_port)
        missing: dict[str, str] = {}
        for number in range(1, args.rounds + 1):
            _tell(f"round {number} of {args.rounds}: starting the routers")
            missing |= _round(names, directory / f"round-{number}", engine_ports, measurements, model)
    figures = []
    for title, measurement in measurements:
        found = measurement.figures()
        figures += found
        show = table.ttft_table if isinstance(measurement, AddedTtft) else table.cost_table
        console.print(show(title, found))
    method = _method(args, built)
    for name, why in missing.items():
        console.print(f"left out: {name}: {why}", markup=False)
    console.print(method, markup=False)
    if args.json:
        text = json.dumps({"method": method, "missing": missing, "figures": [one.as_dict() for one in figures]}, indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n")
    return 1 if any(one.errors for one in figures) else 0


def _model(directory: Path) -> Bundle:
    """The latest of a registry. UsageError: none there."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    try:
        registry = Registry(directory)
        ids = registry.ids()
        if not ids:
            raise UsageError(f"{directory}: no model there")
        return registry.load(ids[-1])
    except RegistryError as error:
        raise UsageError(str(error)) from error


def _measurements(
    args: argparse.Namespace, wanted: list[str], directory: Path, built: Programs, engine_port: int
) -> list[tuple[str, Measurement]]:
    """What is measured, and what each table is called."""
    found: list[tuple[str, Measurement]] = []
    for name in wanted:
        scenario = _scenario(name, args.clients)
        path = directory / f"{name}.requests"
        prompts.write(scenario, path, Random(SEED))
        if name == "ttft":
            title = "added TTFT: streams of 4 events at half of each router's own peak, less the engine's own at that rate"
            found.append((title, AddedTtft(scenario, path, built, args.seconds, _tell, engine_port=engine_port)))
        else:
            found.append((_title(scenario), Throughput(scenario, path, built, args.seconds, _tell)))
    return found


def _round(
    names: list[str],
    directory: Path,
    engine_ports: list[int],
    measurements: list[tuple[str, Measurement]],
    model: Bundle | None,
) -> dict[str, str]:
    """Starts the routers, measures each once in every scenario, ends them. Returns why some were left out."""
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        found, missing = Bench(stack, directory, engine_ports, model).start(names)
        if not found:
            raise UsageError("; ".join(f"{name}: {why}" for name, why in missing.items()))
        try:
            for _, measurement in measurements:
                measurement.round(found)
        except LoadFailed as error:
            raise UsageError(f"the load failed: {error}") from error
    return missing


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="\r", file=sys.stderr, flush=True)


def _scenario(name: str, clients: int) -> Scenario:
    return {
        "small": Scenario("small", 200, clients),
        "large": Scenario("large", 32_000, clients),
        "chunks": Scenario("chunks", 200, clients, chunks=128),
        "paced": Scenario("paced", 200, 4 * clients, chunks=64, pace_ms=10),
        "ttft": Scenario("ttft", 200, clients, chunks=4),
    }[name]


def _title(scenario: Scenario) -> str:
    if not scenario.chunks:
        return f"{scenario.name}: prompts of {scenario.prompt_chars:,} characters, one answer back, {scenario.clients} clients"
    pace = f"one every {scenario.pace_ms} ms" if scenario.pace_ms else "without delay"
    return f"{scenario.name}: streams of {scenario.chunks} events, {pace}, {scenario.clients} clients"


def _method(args: argparse.Namespace, built: Programs) -> str:
    return (
        f"method: {args.rounds} rounds of {args.seconds:g} s, routers in turn and started anew for each, medians (least-most "
        f"of the rounds); {args.workers} scripted engines (one process) and the load in {built.language}; CPU: user + system "
        f"of all processes of a router from /proc (ours: data plane + control plane); every request's prompt differs; "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}: read the ratios."
    )


def _chosen(text: str, known: tuple[str, ...], what: str, on_request: tuple[str, ...] = ()) -> list[str]:
    """on_request: not among "all"."""
    names = list(known) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known + on_request:
            raise UsageError(f"no {what} {name!r}; there are {', '.join(known + on_request)}")
    return list(dict.fromkeys(names))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value

"""`headway profile`: sweeps a fleet from idle to overload, and writes what the router knew and what became of every request.

A running fleet behind its proxy (emulated or real), or one in virtual time (`--simulate`). Same columns, same units: what
`headway analyze` and `headway train --from` read.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import redis.asyncio
import uvloop
from redis.exceptions import RedisError

from emulator.presets import PRESETS
from headway import policy as policies
from headway import profile_workload, runfile
from headway.arguments import positive, whole
from headway.control_client import add_control_argument
from headway.errors import UsageError
from headway.profile_choices import FILE as CHOICES_FILE
from headway.profile_choices import Choices
from headway.profile_sim import SimulatedFleet
from headway.replay import KEY_VARIABLE
from loadgen import profile, profile_columns, sweep
from loadgen.client import Client, Target, served_model
from loadgen.errors import LoadError
from loadgen.profile import Fleet, Interrupted
from loadgen.profile_fleet import LiveFleet
from loadgen.profile_progress import SweepView
from loadgen.profile_rows import late_steps
from loadgen.profile_run import Plan, RunDirectory
from loadgen.sweep import Grid
from loadgen.sweep_rows import Source
from loadgen.synthetic import candidate_words, verified_words
from loadgen.workload import ENDPOINTS, Shape
from prediction import zones
from runtime.clock import SystemClock

KEPT = (
    *("simulate", "preset", "shares", "workers", "worker_speeds", "workload", "tokens_max", "choices"),
    *("model", "endpoint", "tokenizer", "seed"),
)
"""Arguments that a resumed run takes from its plan: others would make other rows."""
ROWS = ("workload", "tokens_max", "seed")
"""Of these, the ones that a run takes from another whose steps it plays."""
TEMPLATE_TOKENS = 64
CONTEXT_TOKENS_DEFAULT = 8_192
"""Of a model that does not say."""
WORKERS_MAX = 1_024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", type=Path, help="plan, parts and data set (default: profile in .headway)")
    parser.add_argument("--resume", action="store_true", help="go on at the first step that was not finished")
    parser.add_argument(
        "--steps-of",
        type=Path,
        metavar="DIR",
        help="play the steps of the profile in DIR, with its prompts, on this fleet: no search for saturation, rows to compare",
    )
    parser.add_argument("--columns", action="store_true", help="print what each column of the data set says, and end")
    _add_sweep(parser.add_argument_group("sweep"))
    profile_workload.add_arguments(parser.add_argument_group("prompts"))
    live = parser.add_argument_group("a running fleet (default)")
    live.add_argument("--url", default="", help=f"the proxy (default: the stack started here; a key for it: {KEY_VARIABLE})")
    live.add_argument(
        "--redis-url",
        default="",
        help="the fleet's Redis (default: that of the stack started here; its password: REDIS_PASSWORD)",
    )
    live.add_argument("--speed", type=positive, help="of emulated engines (default: as the stack started here says, else 1)")
    live.add_argument("--model", default="auto", help="auto: the first model of /v1/models")
    live.add_argument("--endpoint", choices=ENDPOINTS, default="completions", help="default %(default)s: exact lengths")
    live.add_argument("--timeout-s", type=positive, default=600.0, help="of one request, to its end (default 600)")
    add_control_argument(live)  # type: ignore[arg-type]
    virtual = parser.add_argument_group("a fleet in virtual time")
    virtual.add_argument("--simulate", action="store_true", help="no fleet: engines and router in this process")
    virtual.add_argument(
        "--preset",
        default="llama3-8b-h100",
        metavar="P,P,...",
        help=f"of the workers, in turn: {', '.join(PRESETS)} (default %(default)s). Of different models: each request "
        "is for one of them, drawn by --shares",
    )
    virtual.add_argument(
        "--shares",
        default="",
        metavar="X,X,...",
        help="of requests for each model, in the order of --preset, such as 3,1 (default: as many workers as serve it)",
    )
    virtual.add_argument("--workers", type=whole, default=4, help="default %(default)s")
    virtual.add_argument(
        "--choices",
        type=int,
        default=0,
        metavar="N",
        help="of about N requests in each step, find the TTFT at every worker, and write choices.parquet "
        "(for `headway train --choices`)",
    )
    virtual.add_argument("--worker-speeds", default="", metavar="X,X,...", help="unequal workers, in turn, such as 1,1,0.4,0.4")


def _add_sweep(group: argparse._ArgumentGroup) -> None:
    grid = Grid()
    group.add_argument(
        "--rows",
        type=whole,
        default=grid.rows,
        help="plan at least so many requests, in whole rounds of every mix at every level, of 24 requests or more each "
        "(default %(default)s)",
    )
    group.add_argument("--rates", default="", metavar="R,R,...", help="requests a second, instead of shares of saturation")
    levels = ",".join(f"{level:g}" for level in grid.levels)
    group.add_argument("--levels", default=levels, metavar="X,X,...", help="shares of saturation, which is found first")
    group.add_argument("--mixes", default=",".join(grid.mixes), help="buckets of prompt tokens, and mixed (default: all)")
    group.add_argument("--overlaps", default="0,0.5,0.9", help="share of a prompt that others share (default %(default)s)")
    group.add_argument("--outputs", default=",".join(grid.outputs), help="classes of answers' lengths (default %(default)s)")
    group.add_argument("--policy", default="", metavar="A,B,...", help="switch through these from step to step")
    group.add_argument("--step-s", type=positive, default=grid.step_s, help="of arrivals in a step (default %(default)g)")
    group.add_argument("--requests-max", type=whole, default=grid.requests_max, help="in a step (default %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn")


def run(args: argparse.Namespace) -> int:
    """0: all rows are there; 1: some requests failed; 130: interrupted. UsageError: it could not begin, or go on."""
    if args.columns:
        print(profile_columns.markdown())
        return 0
    directory = RunDirectory(args.run_dir or runfile.directory() / "profile")
    try:
        plan = directory.plan() if args.resume else None
        if plan is None and directory.begun:
            raise UsageError(f"profile: {directory.path}: a profile is there already; --resume goes on with it")
        if plan is not None:
            _take(KEPT, plan, args)
        elif args.steps_of is not None:
            _take(ROWS, RunDirectory(args.steps_of).plan(), args)
        if args.choices and not args.simulate:
            raise UsageError("profile: --choices: only a fleet in virtual time can be asked twice: give --simulate")
        directory.make()  # now, rather than when there is something to write
        if args.simulate:
            with _interruptible():
                return asyncio.run(_in_virtual_time(args, plan, directory))
        return uvloop.run(_live(args, plan, directory))
    except (LoadError, ValueError) as error:
        raise UsageError(f"profile: {error}") from None
    except (Interrupted, KeyboardInterrupt):
        print(f"profile: interrupted; --resume --run-dir {directory.path} goes on", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends a step in virtual time at once. asyncio's own handler, set where there is none, would cancel the task where
    it next waits: never."""
    before = signal.signal(signal.SIGINT, lambda *_: signal.default_int_handler(signal.SIGINT, None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _take(names: tuple[str, ...], plan: Plan, args: argparse.Namespace) -> None:
    for name in names:
        setattr(args, name, plan.options.get(name, getattr(args, name)))


async def _in_virtual_time(args: argparse.Namespace, plan: Plan | None, directory: RunDirectory) -> int:
    if args.choices < 0 or (args.choices and args.workers < 2):
        raise UsageError("profile: --choices: a number above 0, of a fleet of two workers or more")
    if args.workers > WORKERS_MAX:
        raise UsageError(f"profile: --workers: {args.workers} is above {WORKERS_MAX}")
    name, started_at = (plan.run, plan.started_at) if plan else _new_run()
    speeds = numbers("--worker-speeds", args.worker_speeds, least=0.01)
    shares = numbers("--shares", args.shares, least=0.001)
    choices = Choices(args.choices, directory.path) if args.choices else None
    fleet = SimulatedFleet(_presets(args), speeds, run=name, started_at=started_at, choices=choices, shares=shares)
    source = profile_workload.source(args, directory.path, _room(fleet.model_len_max))
    code = await _sweep(args, plan, directory, fleet, source, name, started_at)
    if choices is not None:
        print(f"{choices.finish()} choices\n{directory.path / CHOICES_FILE}")
    return code


def _presets(args: argparse.Namespace) -> tuple[str, ...]:
    """A name a worker, in turn. UsageError: more names than workers."""
    names = args.preset.split(",")
    if left_out := names[args.workers :]:
        raise UsageError(f"profile: --preset: there is no worker for {', '.join(left_out)}: give more --workers")
    return tuple(islice(cycle(names), args.workers))


async def _live(args: argparse.Namespace, plan: Plan | None, directory: RunDirectory) -> int:
    clock = SystemClock()
    name, started_at = (plan.run, plan.started_at) if plan else _new_run()
    headers = {"authorization": f"Bearer {key}"} if (key := os.environ.get(KEY_VARIABLE)) else {}
    client = Client(Target.parse(runfile.proxy_url(args.url)), clock=clock, timeout_s=args.timeout_s, headers=headers)
    bus = _bus(args.redis_url)
    try:
        model = await served_model(client, args.model)
        room = _room(model.context_tokens_max or CONTEXT_TOKENS_DEFAULT)
        source = await asyncio.to_thread(profile_workload.source, args, directory.path, room)
        live = LiveFleet(
            client,
            bus,
            shape=Shape(model=model.name, endpoint=args.endpoint),
            words=_words(args.tokenizer),
            run=name,
            speed=plan.speed if plan else args.speed or _speed(),
            switch=lambda policy: _switch(args, policy),
            ending=_on_signals(),
            clock=clock,
        )
        async with live as fleet:
            return await _sweep(args, plan, directory, fleet, source, name, started_at)
    finally:
        client.close()
        await bus.aclose()


async def _sweep(
    args: argparse.Namespace,
    plan: Plan | None,
    directory: RunDirectory,
    fleet: Fleet,
    source: Source,
    name: str,
    started_at: float,
) -> int:
    with SweepView(SystemClock()) as view:
        if plan is None:
            plan = await _plan(args, fleet, source, view, name, started_at)
            directory.begin(plan)
        failed = await profile.play(plan, fleet, source, directory, view)
    rows = directory.finish(plan)
    counts = [int((zones.of(rows["ttft_s"].to_numpy()) == place).sum()) for place in range(len(zones.ZONES))]
    by_zone = ", ".join(f"{count} {name}" for name, count in zip(zones.ZONES, counts, strict=True))
    print(f"{len(rows)} rows ({by_zone}) of {plan.requests} requests in {len(plan.steps)} steps, {failed} failed")
    if plan.requests > plan.grid.rows:
        print(f"--rows {plan.grid.rows} was asked for: whole rounds of all mixes and levels came to {plan.requests}")
    if unknown := plan.requests - len(rows):
        print(f"{unknown} requests are no rows: they failed, or the router had to send them without a decision")
    if late := late_steps(rows):
        print(f"{late} steps arrived more slowly than planned (see arrived_rps): this machine could not send faster")
    print(f"{directory.data}\n{directory.csv}")
    return 1 if failed else 0


async def _plan(args: argparse.Namespace, fleet: Fleet, source: Source, view: SweepView, name: str, started_at: float) -> Plan:
    """Of a run that begins. LoadError, UsageError, Interrupted."""
    options: dict[str, Any] = {key: getattr(args, key) for key in KEPT}
    if args.steps_of is not None:
        other = RunDirectory(args.steps_of).plan()
        return msgspec.structs.replace(other, run=name, started_at=started_at, speed=fleet.speed, options=options)
    grid = _grid(args, source)
    found = await profile.find_saturation(fleet, source, grid, view)
    return profile.plan_of(grid, found, run=name, started_at=started_at, speed=fleet.speed, options=options)


def _room(context_tokens: int) -> int:
    """Prompt tokens beside the longest answer and what a chat template adds."""
    return context_tokens - sweep.OUTPUTS["long"][1] - TEMPLATE_TOKENS


def _grid(args: argparse.Namespace, source: Source) -> Grid:
    """UsageError."""
    recorded = profile_workload.recorded_mixes(source)
    mixes = _names("--mixes", args.mixes, sweep.MIXES)
    overlaps = numbers("--overlaps", args.overlaps, least=0.0)
    if any(overlap >= 1 for overlap in overlaps):
        raise UsageError(f"profile: --overlaps: {args.overlaps!r} has a share of 1 or more: no prompt would be new")
    if recorded:
        mixes = tuple(mix for mix in mixes if mix in recorded)
        overlaps = (sweep.OVERLAP_RECORDED,)
        if not mixes:
            raise UsageError(f"profile: --mixes: the workload has prompts of {', '.join(recorded)} tokens only")
    return Grid(
        mixes=mixes,
        overlaps=overlaps,
        outputs=(sweep.RECORDED,) if recorded else _names("--outputs", args.outputs, tuple(sweep.OUTPUTS)),
        levels=numbers("--levels", args.levels, least=0.001),
        rates_rps=numbers("--rates", args.rates, least=0.0001) if args.rates else (),
        policies=tuple(filter(None, (part.strip() for part in args.policy.split(",")))) or ("",),
        rows=args.rows,
        step_s=args.step_s,
        requests_max=args.requests_max,
        seed=args.seed,
    )


def _names(flag: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in known:
            raise UsageError(f"profile: {flag}: no {name!r}; there are {', '.join(known)}")
    if not names:
        raise UsageError(f"profile: {flag}: nothing is named; there are {', '.join(known)}")
    return names


def numbers(flag: str, text: str, *, least: float) -> tuple[float, ...]:
    """UsageError: not numbers, or one below `least`."""
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"profile: {flag}: {text!r} is not a list of numbers such as 0.5,1,2") from None
    if any(not least <= value < float("inf") for value in values):
        raise UsageError(f"profile: {flag}: {text!r} has a number below {least:g}")
    return values


def _new_run() -> tuple[str, float]:
    started_at = time.time()
    return f"p{int(started_at):x}", started_at


def _words(spec: str) -> list[str]:
    """LoadError: no such tokenizer, or none that prompts can be measured with."""
    tokenizer = profile_workload.tokenizer(spec)
    return verified_words(candidate_words(), lambda text: len(tokenizer.encode(text)) // 4)


def _speed() -> float:
    facts = runfile.read()
    return float(facts.get("speed", 1.0)) if facts else 1.0


def _bus(given: str) -> redis.asyncio.Redis:
    """UsageError: no address is known, or it is none."""
    try:
        url = runfile.redis_url(given)
    except ValueError as error:
        raise UsageError(f"profile: {error}") from None
    if not url:
        raise UsageError("profile: no stack was started here: name the fleet's Redis with --redis-url (or use --simulate)")
    try:
        return redis.asyncio.Redis.from_url(url)
    except (ValueError, RedisError) as error:
        raise UsageError(f"profile: {error}") from None


async def _switch(args: argparse.Namespace, name: str) -> None:
    await asyncio.to_thread(policies.switch, args, name)


def _on_signals() -> asyncio.Event:
    """Set by the first signal; a second one ends at once."""
    ending = asyncio.Event()

    def on_signal() -> None:
        if ending.is_set():
            os._exit(130)
        ending.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return ending

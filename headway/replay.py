"""`headway replay [TRACE]`: a recorded or made-up workload through the proxy, open loop.

What was asked, when, and what came back go to a file, one JSON line a request; a summary is printed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path

import msgspec
import uvloop

from contract import tokens
from headway import policy as policies
from headway import runfile
from headway.arguments import positive, whole
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call
from headway.errors import UsageError
from loadgen import arrivals, generators, traces
from loadgen.client import Client, ServedModel, Target, served_model
from loadgen.errors import LoadError
from loadgen.recorder import Recorder
from loadgen.report import render
from loadgen.rounds import Plan, Timing, play
from loadgen.rows import Blocks, Trace
from loadgen.summary import Figures, Slo
from loadgen.synthetic import candidate_words, verified_words
from loadgen.workload import ENDPOINTS, Shape, input_tokens, output_tokens
from proto import fleet_pb2, fleet_pb2_grpc
from runtime import rng
from runtime.clock import SystemClock

SAMPLES = {"sample": "sample_conversations.jsonl.gz", "sample-mooncake": "sample_mooncake.jsonl.gz"}
RATE_DEFAULT = "4"
"""Requests a second, where a workload does not know its own times."""
TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt."""
DESCRIPTORS_SPARE = 64
KEY_VARIABLE = "HEADWAY_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    made_up = ", ".join(f"{name}[:key=number,...]" for name in generators.NAMES)
    parser.add_argument(
        "trace",
        nargs="?",
        default="sample",
        metavar="TRACE",
        help=f"a file (Mooncake, agentic or conversations as JSONL; Azure or ServeGen as CSV; .gz or not); "
        f"{' or '.join(SAMPLES)} (shipped; default sample); or made up: {made_up}",
    )
    add_control_argument(parser)
    _add_target(parser.add_argument_group("where to"))
    _add_timing(parser.add_argument_group("when"))
    _add_content(parser.add_argument_group("what"))
    _add_output(parser.add_argument_group("figures"))


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url",
        default="",
        help=f"base URL (default: the stack started here, else {runfile.URL_DEFAULT}; a key for it: {KEY_VARIABLE})",
    )
    group.add_argument("--model", default="auto", help="auto: the first model of /v1/models")
    group.add_argument("--endpoint", choices=ENDPOINTS, default="chat", help="default %(default)s")
    group.add_argument("--timeout-s", type=positive, default=600.0, help="of one request, to its end (default 600)")
    group.add_argument("--in-flight-max", type=whole, default=8192, help="beyond it a request is not sent, and fails")
    group.add_argument(
        "--policy", default="", metavar="A,B,...", help="switch to each in turn, one round each, compare them, and switch back"
    )
    group.add_argument("--rounds", type=whole, default=1, help="how often to go through them (default 1)")


def _add_timing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--speed", type=positive, help="recorded times, this much faster (default 1)")
    group.add_argument("--smooth", action="store_true", help="spread requests recorded at one time up to the next")
    group.add_argument("--rate", help="requests a second instead of recorded times: 5, or 1-10:60 (ramp), or 2:30,8:30 (steps)")
    group.add_argument("--arrivals", choices=arrivals.PROCESSES, help="with --rate (default poisson)")
    group.add_argument("--cv", type=positive, default=2.0, help="of gamma gaps; above 1 is bursty (default 2)")
    group.add_argument("--at-once", type=whole, default=32, help="conversations beside each other (default 32)")
    group.add_argument("--conversation-gap-s", type=positive, default=30.0, help="agentic: a new conversation this often")
    group.add_argument("--idle-s-max", type=positive, default=60.0, help="agentic: longer pauses are cut to this (default 60)")


def _add_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--limit", type=whole, default=2000, help="first so many requests (default 2000)")
    group.add_argument("--block-tokens", type=whole, help="tokens of text for a block of the trace; lengths shrink alike")
    group.add_argument("--scale", type=positive, help="the same as a factor: 0.25 makes a 512-token block 128 tokens")
    group.add_argument("--output-scale", type=positive, help="of answers only (default: as --scale)")
    group.add_argument("--max-tokens", type=whole, default=1 << 30, help="no answer is longer than this")
    group.add_argument("--stop-at-eos", action="store_true", help="answers may end early (default: ignore_eos)")
    group.add_argument("--client-prompt-tokens", type=int, default=0, help="ServeGen: length of each client's system prompt")
    group.add_argument("--tokenizer", default=tokens.BUILTIN, help="prompts are made to measure for it (default %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of arrivals and made-up workloads")
    group.add_argument("--salt", default="", help="another one: other prompts with the same sharing, so caches are cold")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--slo-ttft-ms", type=positive, help="goodput: the first token within this")
    group.add_argument("--slo-itl-ms", type=positive, help="goodput: mean time per token after the first within this")
    group.add_argument("--send-slo", action="store_true", help="tell the router: x-headway-slo-ttft-ms on every request")
    group.add_argument("--match-block-tokens", type=whole, default=16, help="predicted and cached compare to this block")
    group.add_argument("--out", type=Path, help="file for one JSON line a request (default: replay.jsonl in .headway)")
    group.add_argument("--json", action="store_true", help="print the summary as JSON, one object a line and policy")


def run(args: argparse.Namespace) -> int:
    """0: no request failed; 1: some did; 130: interrupted. UsageError: it could not begin."""
    try:
        trace = _read_trace(args)
        plan = _plan(args, trace)
        return uvloop.run(_replay(args, plan))
    except LoadError as error:
        raise UsageError(f"replay: {error}") from None


def _read_trace(args: argparse.Namespace) -> Trace:
    text = args.trace
    if generators.is_generated(text):
        return generators.generate(text, limit=args.limit, rng=rng.stream(args.seed, "workload"))
    options = traces.Options(
        at_once=args.at_once,
        conversation_gap_s=args.conversation_gap_s,
        idle_s_max=args.idle_s_max,
        client_prompt_tokens=max(0, args.client_prompt_tokens),
    )
    if text in SAMPLES:
        with resources.as_file(resources.files("loadgen").joinpath("data", SAMPLES[text])) as path:
            return traces.read(path, limit=args.limit, options=options)
    return traces.read(Path(text), limit=args.limit, options=options)


def _plan(args: argparse.Namespace, trace: Trace) -> Plan:
    """All that does not need the fleet. LoadError."""
    scale = _scale(args, trace)
    shape = Shape(
        model="",
        endpoint=args.endpoint,
        scale=scale,
        output_scale=args.output_scale or scale,
        output_tokens_max=args.max_tokens,
        ignore_eos=not args.stop_at_eos,
        salt=args.salt,
        request_id_prefix=f"replay-{os.urandom(4).hex()}",
    )
    return Plan(
        trace=trace,
        timing=_timing(args, trace),
        shape=shape,
        words=_words(args.tokenizer),
        policies=tuple(filter(None, (name.strip() for name in args.policy.split(",")))) * args.rounds or ("",) * args.rounds,
        seed=args.seed,
        slo=Slo(_seconds(args.slo_ttft_ms), _seconds(args.slo_itl_ms)),
        match_block_tokens=args.match_block_tokens,
        in_flight_max=_in_flight_max(args.in_flight_max),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _scale(args: argparse.Namespace, trace: Trace) -> float:
    """Blocks and lengths shrink together: by a factor, or by what a full block becomes."""
    if args.block_tokens is None:
        return float(args.scale or 1.0)
    full = next((row.prompt.block_tokens for row in trace.rows if isinstance(row.prompt, Blocks)), None)
    if full is None:
        raise LoadError(f"--block-tokens: {trace.name} carries its own text")
    scale = args.block_tokens / full
    if args.scale is not None and abs(args.scale - scale) > 1e-9:
        raise LoadError(
            f"--scale {args.scale:g} and --block-tokens {args.block_tokens} differ: {full} tokens become one or other"
        )
    return float(scale)


def _timing(args: argparse.Namespace, trace: Trace) -> Timing:
    if args.rate is not None and (args.speed is not None or args.smooth):
        raise LoadError("--rate replaces the recorded times: --speed and --smooth do not go with it")
    if args.rate is None and trace.timed:
        if args.arrivals is not None:
            raise LoadError("--arrivals needs --rate")
        return Timing(speed=args.speed or 1.0, smooth=args.smooth)
    if args.rate is None and args.speed is not None:
        raise LoadError(f"--speed: {trace.name} has no recorded times; give --rate")
    try:
        profile = arrivals.parse_rate(args.rate or RATE_DEFAULT)
    except ValueError as error:
        raise LoadError(f"--rate: {error}") from None
    return Timing(rate=profile, process=args.arrivals or "poisson", cv=args.cv)


def _words(spec: str) -> list[str]:
    """LoadError: no such tokenizer, or none that prompts can be measured with."""
    try:
        tokenizer = tokens.load(spec)
    except tokens.TokenizerUnavailable as error:
        raise LoadError(f"--tokenizer: {error}") from None
    return verified_words(candidate_words(), lambda text: len(tokenizer.encode(text)) // 4)


def _in_flight_max(asked: int) -> int:
    """As many as were asked for, if the system lets this process have so many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = asked + DESCRIPTORS_SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            print(f"replay: at most {soft - DESCRIPTORS_SPARE} requests in flight: {soft} open files allowed", file=sys.stderr)
            return soft - DESCRIPTORS_SPARE
    return asked


async def _replay(args: argparse.Namespace, plan: Plan) -> int:
    headers = {}
    if key := os.environ.get(KEY_VARIABLE):
        headers["authorization"] = f"Bearer {key}"
    if args.send_slo and args.slo_ttft_ms:
        headers["x-headway-slo-ttft-ms"] = f"{args.slo_ttft_ms:g}"
    clock = SystemClock()
    client = Client(Target.parse(runfile.proxy_url(args.url)), clock=clock, timeout_s=args.timeout_s, headers=headers)
    try:
        plan = _for_model(plan, await served_model(client, args.model))
        out = args.out or runfile.directory() / "replay.jsonl"
        with ExitStack() as stack:
            recorder = stack.enter_context(Recorder(out))
            figures, interrupted = await _play(args, plan, client, recorder, clock)
    finally:
        client.close()
    _print(figures, args, "" if recorder.why else f"one line a request: {out}")
    if recorder.why:
        print(f"replay: {out} is not whole: {recorder.why}", file=sys.stderr)
        return 1
    if interrupted:
        return 130
    return 1 if any(column.failed for column in figures) else 0


async def _play(
    args: argparse.Namespace, plan: Plan, client: Client, recorder: Recorder, clock: SystemClock
) -> tuple[list[Figures], bool]:
    """The figures, and whether someone ended it early."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, ending)

    async def before_round(name: str) -> None:
        await asyncio.to_thread(policies.switch, args, name)

    before = await asyncio.to_thread(_policy_now, args) if any(plan.policies) else ""
    gc.collect()
    gc.freeze()  # the workload stays: no full collection walks it while requests are due
    try:
        figures = await play(
            plan, client, clock=clock, ending=ending, before_round=before_round, on_record=recorder.write, title=plan.trace.name
        )
    finally:
        if before:
            await before_round(before)
    return figures, ending.is_set()


def _policy_now(args: argparse.Namespace) -> str:
    """UsageError: no control plane answers."""
    ask = fleet_pb2.GetPolicyRequest()
    return str(call(args, lambda channel: fleet_pb2_grpc.FleetStub(channel).GetPolicy(ask, timeout=CALL_TIMEOUT_S)).name)


def _on_signal(ending: asyncio.Event) -> None:
    """The first asks for the summary so far, the second ends at once."""
    if ending.is_set():
        os._exit(130)
    ending.set()


def _for_model(plan: Plan, model: ServedModel) -> Plan:
    """The plan with the model's name, without the requests that are too long for it."""
    plan = replace(plan, shape=replace(plan.shape, model=model.name))
    if not model.context_tokens_max:
        return plan
    room = model.context_tokens_max - TEMPLATE_TOKENS
    kept = [row for row in plan.trace.rows if input_tokens(row, plan.shape) + output_tokens(row, plan.shape) <= room]
    if not kept:
        raise LoadError(f"every request is longer than the {model.context_tokens_max} tokens of {model.name}; try --scale 0.25")
    if left_out := len(plan.trace.rows) - len(kept):
        print(
            f"replay: {left_out} of {len(plan.trace.rows)} requests are longer than the {model.context_tokens_max} tokens of "
            f"{model.name} and are left out (--scale 0.25 shrinks them all)",
            file=sys.stderr,
        )
    return replace(plan, trace=replace(plan.trace, rows=kept))


def _print(figures: list[Figures], args: argparse.Namespace, where: str) -> None:
    if args.json:
        for column in figures:
            print(msgspec.json.encode(column).decode())
        return
    if figures:
        print(render(figures))
    if where:
        print(where)

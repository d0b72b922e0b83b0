"""`headway models`: the models of TTFT that the trainer keeps; promote one, go back to the one before, judge one anew."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from headway.as_json import add_json_argument, print_message
from headway.model_tables import LEGEND, model_table, scores_of, zone_table
from headway.trainer_client import CALL_TIMEOUT_S, EVALUATE_TIMEOUT_S, add_trainer_argument, call
from proto import trainer_pb2, trainer_pb2_grpc

WIDTH = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trainer_argument(parser)
    add_json_argument(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="all of them, and what became of the latest (default)")
    show = actions.add_parser("show", help="one model's figures by zone")
    show.add_argument("model")
    promote = actions.add_parser("promote", help="serve this model from now on")
    promote.add_argument("model")
    promote.add_argument("--force", action="store_true", help="even if it did not pass the gate")
    actions.add_parser("rollback", help="back to the model that served before")
    evaluate = actions.add_parser("evaluate", help="one model's figures by zone, on other samples than those it was judged by")
    evaluate.add_argument("model")
    evaluate.add_argument(
        "--from",
        dest="source",
        default="",
        metavar="PATH",
        help="of the trainer's host; default: its outcome log, of which a part taught it",
    )
    for action in actions.choices.values():
        add_json_argument(action, argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    console = Console()
    console.width = max(console.width, WIDTH)
    if args.action == "show":
        return _show(args, console)
    if args.action == "evaluate":
        return _evaluate(args, console)
    if args.action == "promote":
        ask = trainer_pb2.PromoteRequest(model_id=args.model, force=args.force)
        model = call(args, lambda channel: trainer_pb2_grpc.TrainerStub(channel).Promote(ask, timeout=CALL_TIMEOUT_S))
        return _done(args, model, "serves")
    if args.action == "rollback":
        back = trainer_pb2.RollbackRequest()
        model = call(args, lambda channel: trainer_pb2_grpc.TrainerStub(channel).Rollback(back, timeout=CALL_TIMEOUT_S))
        return _done(args, model, "serves again")
    return _list(args, console)


def _done(args: argparse.Namespace, model: trainer_pb2.Model, what: str) -> int:
    if args.json:
        print_message(model)
    else:
        print(f"{model.model_id} {what}")
    return 0


def _list(args: argparse.Namespace, console: Console) -> int:
    request = trainer_pb2.ListModelsRequest()
    found = call(args, lambda channel: trainer_pb2_grpc.TrainerStub(channel).ListModels(request, timeout=CALL_TIMEOUT_S))
    if args.json:
        print_message(found)
        return 0
    if not found.models:
        print(f"no model yet; {found.samples:,} sample{'' if found.samples == 1 else 's'} at hand (headway train)")
        return 0
    console.print(model_table(found.models), highlight=False)
    for event in found.history[-5:]:
        at = time.strftime("%H:%M:%S", time.localtime(event.at))
        console.print(
            f"{at}  {event.model_id} {event.what}{': ' if event.why else ''}{event.why}", style="dim", highlight=False
        )
    console.print(f"{found.samples:,} samples at hand", style="dim", highlight=False)
    return 0


def _show(args: argparse.Namespace, console: Console) -> int:
    request = trainer_pb2.GetModelRequest(model_id=args.model)
    model = call(args, lambda channel: trainer_pb2_grpc.TrainerStub(channel).GetModel(request, timeout=CALL_TIMEOUT_S))
    if args.json:
        print_message(model)
        return 0
    state = trainer_pb2.ModelState.Name(model.state).lower().replace("_", " ")
    trained = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(model.trained_at))
    print(
        f"{model.model_id}: {model.kind}, {state}, trained {trained} on {model.samples:,} samples ({model.note or 'no note'})"
    )
    print(f"features version {model.feature_version}, sha256 {model.sha256}")
    console.print(zone_table([(model.kind, scores_of(model.evaluation))]), highlight=False)
    console.print(LEGEND, style="dim", highlight=False)
    return 0


def _evaluate(args: argparse.Namespace, console: Console) -> int:
    dataset = str(Path(args.source).absolute()) if args.source else ""
    request = trainer_pb2.EvaluateRequest(model_id=args.model, dataset=dataset)
    said = call(args, lambda channel: trainer_pb2_grpc.TrainerStub(channel).Evaluate(request, timeout=EVALUATE_TIMEOUT_S))
    if args.json:
        print_message(said)
        return 0
    console.print(zone_table([(args.model, scores_of(said))]), highlight=False)
    console.print(LEGEND, style="dim", highlight=False)
    return 0

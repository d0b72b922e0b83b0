"""`headway explain [DECISION]`: why a request went where it went, every candidate with its features and scores."""

from __future__ import annotations

import argparse
import re
import time

import grpc
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from headway.as_json import add_json_argument, print_message
from headway.control_client import CALL_TIMEOUT_S, add_control_argument, call_all
from headway.errors import UsageError
from proto import routing_pb2, routing_pb2_grpc

# Those that differ between candidates and decide; --all shows every one.
_FEATURES = {
    "matched_tokens": "cached",
    "uncached_tokens": "uncached",
    "active": "active",
    "prefill_tokens": "prefill",
    "running": "running",
    "waiting": "waiting",
    "kv_usage": "kv",
    "report_age_s": "age s",
}
_FORECAST = ("TTFT s", "p90 s", "corrected")
WIDTH_MAX = 10_000
"""Columns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_control_argument(parser)
    parser.add_argument(
        "decision", nargs="?", default="", help="the x-headway-decision header of the response (default: the latest decision)"
    )
    parser.add_argument("--all", action="store_true", help="every feature")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    request = routing_pb2.ExplainRequest(decision_id=_decision_id(args.decision))

    def ask(channel: grpc.Channel) -> routing_pb2.Explanation:
        return routing_pb2_grpc.RoutingStub(channel).Explain(request, timeout=CALL_TIMEOUT_S)

    found = call_all(args, ask, unknown=(grpc.StatusCode.NOT_FOUND,))  # whoever decided it knows; of the latest, the latest
    explanation = max((answer for _, answer in found), key=lambda answer: answer.decided_at)
    if args.json:
        print_message(explanation)
        return 0
    show(render(explanation, every_feature=args.all), Console())
    return 0


def show(what: Group | Table, console: Console) -> None:
    """Nothing is cut, however many workers there are and however narrow the terminal, which breaks lines by itself."""
    console.width = max(console.width, console.measure(what, options=console.options.update(width=WIDTH_MAX)).maximum)
    console.print(what)


def _decision_id(text: str) -> int:
    """0: the latest. UsageError: not 16 hexadecimal digits, or all of them 0."""
    if not text:
        return 0
    if not re.fullmatch("[0-9a-fA-F]{16}", text) or not int(text, 16):
        raise UsageError(f"{text!r} is not a decision id (16 hexadecimal digits, from the x-headway-decision header)")
    return int(text, 16)


def render(explanation: routing_pb2.Explanation, *, every_feature: bool = False) -> Group:
    at = time.strftime("%H:%M:%S", time.localtime(explanation.decided_at))
    head = Text(f"decision {explanation.decision_id:016x} at {at}: {explanation.model}, {explanation.input_tokens:,} tokens")
    if explanation.model_id:
        head.append(f", predicted by {explanation.model_id}")
    why = Text(f"policy {explanation.policy}: {explanation.reason}", style="bold")
    if explanation.HasField("shed"):
        reason = routing_pb2.Shed.Reason.Name(explanation.shed.reason)
        why = Text(f"refused ({reason}): {explanation.shed.message}", style="bold red")
    table, outcome = _table(explanation), _outcome(explanation)
    return Group(head, why, _all_features(explanation), table, outcome) if every_feature else Group(head, why, table, outcome)


def _all_features(explanation: routing_pb2.Explanation) -> Table:
    """A row a feature, a column a candidate."""
    candidates = sorted(explanation.candidates, key=_order)
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("feature", no_wrap=True)
    for candidate in candidates:
        table.add_column(_name(candidate), justify="right", no_wrap=True, style="green" if candidate.chosen else "")
    for name in sorted({name for candidate in candidates for name in candidate.features}):
        cells = [_number(candidate.features[name]) if name in candidate.features else "-" for candidate in candidates]
        table.add_row(name, *cells)
    return table


def _table(explanation: routing_pb2.Explanation) -> Table:
    features = [name for name in _FEATURES if _tells(explanation, name)]
    scorers = list(dict.fromkeys(name for candidate in explanation.candidates for name in candidate.scores))
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("")
    table.add_column("worker", no_wrap=True)
    titles = [_FEATURES[name] for name in features]
    predicted = any(candidate.predicted_ttft_s for candidate in explanation.candidates)
    forecast = _FORECAST if predicted else ()
    for name in [*titles, *forecast, *(f"{name} score" for name in scorers), "total"]:
        table.add_column(name, justify="right")
    for candidate in sorted(explanation.candidates, key=_order):
        style = "green" if candidate.chosen else "dim" if candidate.rejected_by else ""
        cells = [_number(candidate.features[name]) if name in candidate.features else "-" for name in features]
        cells += _forecast(candidate) if predicted else []
        cells += [f"{candidate.scores[name]:.3f}" if name in candidate.scores else "-" for name in scorers]
        total = (candidate.rejected_by and f"out: {candidate.rejected_by}") or f"{candidate.total:.3f}"
        table.add_row("->" if candidate.chosen else "", _name(candidate), *cells, total, style=style)
    return table


def _name(candidate: routing_pb2.CandidateView) -> str:
    """Its worker, and its rank where requests are steered to one."""
    if not candidate.HasField("data_parallel_rank"):
        return candidate.worker
    return f"{candidate.worker}/{candidate.data_parallel_rank}"


def _order(candidate: routing_pb2.CandidateView) -> tuple[bool, bool, float, float]:
    """The chosen one, then by what decided: predictions where there are any, else scores; then those that were out."""
    return not candidate.chosen, bool(candidate.rejected_by), candidate.predicted_ttft_s, -candidate.total


def _forecast(candidate: routing_pb2.CandidateView) -> list[str]:
    if not candidate.predicted_ttft_s:
        return ["-"] * len(_FORECAST)
    return [f"{candidate.predicted_ttft_s:.3g}", f"{candidate.predicted_p90_s:.3g}", f"x {candidate.correction:.2f}"]


def _tells(explanation: routing_pb2.Explanation, feature: str) -> bool:
    """Whether any candidate has something else than 0 there."""
    return any(candidate.features.get(feature) for candidate in explanation.candidates)


def _outcome(explanation: routing_pb2.Explanation) -> Text:
    if not explanation.HasField("outcome"):
        return Text("not ended yet" if not explanation.HasField("shed") else "", style="dim")
    outcome = explanation.outcome
    parts = [f"ended {routing_pb2.End.Name(outcome.end)} after {outcome.e2e_s:.3f} s, status {outcome.http_status}"]
    if outcome.HasField("ttft_s"):
        parts.append(f"TTFT {outcome.ttft_s * 1000:.0f} ms")
    if outcome.HasField("cached_tokens"):
        parts.append(f"the engine found {outcome.cached_tokens:,} tokens in its cache")
    parts.append(f"{outcome.output_tokens:,} tokens out")
    return Text(", ".join(parts), style="dim")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.3f}"

"""Figures as text for people: one column a policy. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.summary import Figures, Quantiles

WORKERS_SHOWN_MAX = 16


def render(columns: Sequence[Figures]) -> str:
    """A table; what does not fit into one (failures, warnings) below it."""
    names = [column.policy for column in columns]
    table = [("", names)] if any(names) and len(columns) > 1 else []
    table += [(label, [line(column) for column in columns]) for label, line in _LINES]
    kept = [(label, cells) for label, cells in table if any(cells)]
    label_width = max(len(label) for label, _ in kept)
    widths = [max(len(cells[place]) for _, cells in kept) for place in range(len(columns))]
    lines = [
        "  ".join([label.ljust(label_width), *(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))]).rstrip()
        for label, cells in kept
    ]
    if bounds := _slo(columns[0]):
        lines.append(f"goodput: requests with {bounds}; those that failed or were shed are misses")
    for column in columns:
        lines += _notes(column)
    return "\n".join(lines)


def _notes(column: Figures) -> list[str]:
    name = f"{column.policy}: " if column.policy else ""
    lines = [f"  {name}{count} x {message}" for message, count in column.errors.items()]
    if column.short_outputs:
        lines.append(f"  {name}{column.short_outputs} complete answers had fewer tokens than asked for")
    if column.warning:
        lines.append(f"warning: {name}{column.warning}")
    return lines


def duration(seconds: float | None) -> str:
    """Three digits, in the unit that reads best."""
    if seconds is None:
        return "-"
    if abs(seconds) < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 0.9995 else "1 s"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _three(values: Quantiles) -> str:
    return "" if values.p50 is None else " / ".join(map(duration, (values.p50, values.p90, values.p99)))


def _requests(figures: Figures) -> str:
    parts = [f"{figures.requests} in {duration(figures.duration_s)}", f"{figures.ok} ok", f"{figures.failed} failed"]
    parts += [f"{figures.shed} shed"] if figures.shed else []
    parts += [f"{figures.interrupted} interrupted"] if figures.interrupted else []
    return ", ".join(parts)


def _rates(figures: Figures) -> str:
    return f"{figures.offered_per_s:.3g} / {figures.completed_per_s:.3g} / {figures.output_tokens_per_s:.0f}"


def _goodput(figures: Figures) -> str:
    if figures.goodput_share is None or figures.goodput_per_s is None:
        return ""
    return f"{percent(figures.goodput_share)}, {figures.goodput_per_s:.3g}/s"


def _slo(figures: Figures) -> str:
    bounds = [f"TTFT <= {duration(figures.slo.ttft_s)}"] if figures.slo.ttft_s is not None else []
    bounds += [f"ITL <= {duration(figures.slo.itl_s)}"] if figures.slo.itl_s is not None else []
    return ", ".join(bounds)


def _cached(figures: Figures) -> str:
    if figures.cached_share is None:
        return "the engines do not report it"
    return f"{percent(figures.cached_share)} of {figures.prompt_tokens}"


def _match(figures: Figures) -> str:
    if figures.match_equal_share is None:
        return ""
    over, under = percent(figures.match_over_share), percent(figures.match_under_share)
    return f"{percent(figures.match_equal_share)} of {figures.match_compared} (over {over}, under {under})"


def _workers(figures: Figures) -> str:
    shown = [f"{worker} {count}" for worker, count in list(figures.workers.items())[:WORKERS_SHOWN_MAX]]
    hidden = len(figures.workers) - len(shown)
    return ", ".join(shown) + (f", and {hidden} more" if hidden > 0 else "")


def _router(figures: Figures) -> str:
    counted = {"retried": figures.retried, "without control plane": figures.fallbacks, "reconnected": figures.reconnects}
    return ", ".join(f"{count} {name}" for name, count in counted.items() if count)


def _failures(figures: Figures) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in figures.failures.items())


def _lateness(figures: Figures) -> str:
    late = figures.lateness_s
    return "" if late.p50 is None else " / ".join(map(duration, (late.p50, late.p99, late.max)))


_LINES = (
    ("requests", _requests),
    ("requests/s due, done; tokens/s", _rates),
    ("TTFT p50 / p90 / p99", lambda figures: _three(figures.ttft_s)),
    ("ITL p50 / p90 / p99", lambda figures: _three(figures.itl_s)),
    ("E2E p50 / p90 / p99", lambda figures: _three(figures.e2e_s)),
    ("goodput", _goodput),
    ("cached prompt tokens", _cached),
    ("predicted = cached", _match),
    ("requests per worker", _workers),
    ("router", _router),
    ("failures", _failures),
    ("generator lateness p50 / p99 / max", _lateness),
)

"""Figures as a table, with ratios: to nginx, and to the cheapest Rust router under each of its policies."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from headway.bench_proxy.measure import Figures
from headway.bench_proxy.routers import RUST

Columns = Sequence[tuple[str, float | None]]


def cheapest(figures: Sequence[Figures], policy: str) -> float | None:
    """CPU us per request of the cheaper Rust router with this policy; None: none was measured."""
    costs = [one.cpu_us_per_request for one in figures if one.router in [f"{peer}:{policy}" for peer in RUST]]
    return min(costs, default=None)


def references(figures: Sequence[Figures]) -> Columns:
    """What a cost is divided by."""
    nginx = next((one.cpu_us_per_request for one in figures if one.router == "nginx"), None)
    return (
        ("x nginx", nginx),
        ("x Rust round robin", cheapest(figures, "round_robin")),
        ("x Rust cache_aware", cheapest(figures, "cache_aware")),
    )


def cost_table(title: str, figures: Sequence[Figures]) -> Table:
    """One scenario."""
    streamed = any(one.chunks_per_s for one in figures)
    table = Table(title=title, title_justify="left")
    table.add_column("router", no_wrap=True)
    columns = ["requests/s", *(("chunks/s", "CPU us/chunk") if streamed else ()), "CPU us/request", "least-most"]
    divisors = references(figures)
    for name in (*columns, *(name for name, _ in divisors), "p50 us", "p99 us", "errors"):
        table.add_column(name, justify="right")
    for one in figures:
        chunks = (f"{one.chunks_per_s:,.0f}", f"{one.cpu_us_per_chunk:.1f}") if streamed else ()
        ratios = (f"{one.cpu_us_per_request / value:.2f}" if value else "-" for _, value in divisors)
        spread = f"{one.cpu_us_least:.1f}-{one.cpu_us_most:.1f}"
        cells = (f"{one.requests_per_s:,.0f}", *chunks, f"{one.cpu_us_per_request:.1f}", spread, *ratios)
        table.add_row(one.router, *cells, f"{one.first_us_p50:,.0f}", f"{one.first_us_p99:,.0f}", str(one.errors))
    return table


def ttft_table(title: str, figures: Sequence[Figures]) -> Table:
    """Added TTFT."""
    table = Table(title=title, title_justify="left")
    table.add_column("router", no_wrap=True)
    for name in ("requests/s", "added TTFT p50 us", "added TTFT p99 us", "CPU us/request", "errors"):
        table.add_column(name, justify="right")
    for one in figures:
        added = (f"{one.added_ttft_us_p50 or 0:,.0f}", f"{one.added_ttft_us_p99 or 0:,.0f}")
        table.add_row(one.router, f"{one.rate:,.0f}", *added, f"{one.cpu_us_per_request:.1f}", str(one.errors))
    return table

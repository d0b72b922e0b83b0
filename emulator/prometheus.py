"""The Prometheus text format, as Python's client writes it: what `metrics` needs of it, at a few microseconds a family."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

_ENGINE = "engine"

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def labels_text(labels: Mapping[str, str]) -> str:
    """`{a="1",b="2"}`, names in order; "" for none."""
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(labels.items()))
    return "{" + inside + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Value:
    """One number: a gauge, or a counter that only grows."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value


class Histogram:
    """Counts by upper bound; the last bucket is everything."""

    __slots__ = ("_bounds", "_counts", "_lines", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._lines: tuple[int, list[str]] | None = None
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def observe(self, value: float, times: int = 1) -> None:
        """The same value `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """The family's sample lines; made anew only after an observation."""
        count = self.count
        if self._lines is not None and self._lines[0] == count:
            return self._lines[1]
        result: list[str] = []
        running = 0
        for bound, observed in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            running += observed
            result.append(f"{name}_bucket{labels_text({**labels, 'le': bound})} {float(running)}")
        text = labels_text(labels)
        result += [f"{name}_count{text} {float(running)}", f"{name}_sum{text} {self.total}"]
        self._lines = (count, result)
        return result


class Page:
    """Families in the order in which they were declared."""

    def __init__(self, labels: Mapping[str, str], created_unix: float) -> None:
        """labels: on every series. created_unix: the value of every `_created`."""
        self._labels = dict(labels)
        self._created = created_unix
        self._families: list[tuple[str, str, str, list[tuple[dict[str, str], Value | Histogram]]]] = []

    def gauge(self, name: str, help: str) -> Value:
        return self.gauges(name, help, "", ("",))[""]

    def gauges(self, name: str, help: str, label: str, values: Sequence[str]) -> dict[str, Value]:
        """One gauge for each value of a label."""
        return self._declare(name, "gauge", help, label, values)

    def counter(self, name: str, help: str) -> Value:
        return self.counters(name, help, "", ("",))[""]

    def counters(self, name: str, help: str, label: str, values: Sequence[str], *, without: str = "") -> dict[str, Value]:
        """One counter for each value of a label. name: without `_total`; without: a label of the page that it lacks."""
        return self._declare(name, "counter", help, label, values, without)

    def histogram(self, name: str, help: str, bounds: Sequence[float]) -> Histogram:
        histogram = Histogram(bounds)
        self._families.append((name, "histogram", help, [(self._labels, histogram)]))
        return histogram

    def info(self, name: str, help: str, labels: Mapping[str, str]) -> Value:
        """A gauge of 1 that carries labels of its own instead of the page's."""
        value = Value(1.0)
        self._families.append((name, "gauge", help, [(dict(labels), value)]))
        return value

    def series(self, name: str, help: str) -> list[tuple[dict[str, str], Value | Histogram]]:
        """A gauge family whose series the caller keeps."""
        children: list[tuple[dict[str, str], Value | Histogram]] = []
        self._families.append((name, "gauge", help, children))
        return children

    def _declare(
        self, name: str, kind: str, help: str, label: str, values: Sequence[str], without: str = ""
    ) -> dict[str, Value]:
        children = {value: Value() for value in values}
        common = {key: value for key, value in self._labels.items() if key != without}
        rows: list[tuple[dict[str, str], Value | Histogram]] = [
            ({**common, label: value} if label else common, child) for value, child in children.items()
        ]
        self._families.append((name, kind, help, rows))
        return children

    def render(self, *others: Page) -> str:
        """The whole page. others: of the same families, for other engines: what bears an engine's label is there of each."""
        lines: list[str] = []
        for number, (name, kind, help, rows) in enumerate(self._families):
            for other in others:
                rows = rows + [row for row in other._families[number][3] if _ENGINE in row[0]]
            lines += self._family(name, kind, help, rows)
        return "\n".join(lines) + "\n"

    def _family(self, name: str, kind: str, help: str, rows: list[tuple[dict[str, str], Value | Histogram]]) -> Iterator[str]:
        shown = f"{name}_total" if kind == "counter" else name
        yield f"# HELP {shown} {help}"
        yield f"# TYPE {shown} {kind}"
        for labels, child in rows:
            if isinstance(child, Histogram):
                yield from child.lines(name, labels)
            else:
                yield f"{shown}{labels_text(labels)} {float(child.value)}"
        if kind != "gauge":
            yield f"# HELP {name}_created {help}"
            yield f"# TYPE {name}_created gauge"
            for labels, _ in rows:
                yield f"{name}_created{labels_text(labels)} {self._created}"

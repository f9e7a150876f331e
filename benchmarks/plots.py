"""Plots of measured figures, as SVG without a library or an embedded font.

They have no background, and colours of medium brightness, so that they are readable on light and
on dark pages.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.report import KINDS, Run, number

WIDTH = 720
LABEL = 190
"""Space for the names on the left."""
VALUE = 120
"""Space for the figures on the right."""
ROW = 34
TEXT = "#7d8590"
ACCENT = "#2f81f7"
OTHERS = "#8c959f"
SECOND = "#d18616"


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: the median, and the lowest and highest round."""

    label: str
    value: float
    low: float
    high: float
    ours: bool


def pictures(run: Run) -> dict[str, tuple[str, str]]:
    """Plots of the figures that the run has: description and SVG, by file name."""
    found = {
        "batched": _chart(run, "Jobs per second, best settings", "batched", "rate", "jobs/s"),
        "default": _chart(run, "Jobs per second, default options", "default", "rate", "jobs/s"),
        "latency": _chart(run, "Median latency of a single job", "latency", "p50", "ms"),
        "open-transaction": _lines(run),
        "history": _chart(
            run,
            "Jobs per second in batches, with each kind of history",
            "history",
            "rate 500",
            "jobs/s",
            names={side: f"history = {kind}" for side, kind in KINDS.items()},
        ),
    }
    return {f"{name}.svg": picture for name, picture in found.items() if picture is not None}


def _chart(
    run: Run,
    title: str,
    measure: str,
    figure: str,
    unit: str,
    *,
    names: Mapping[str, str] | None = None,
) -> tuple[str, str] | None:
    if names is None:
        names = {name: side["title"] for name, side in run.sides.items()} | {"pgbench": "pgbench"}
    chosen: list[Bar] = []
    for name, label in names.items():
        values = run.values(measure, name, figure)
        if values:
            middle = statistics.median(values)
            chosen.append(Bar(label, middle, min(values), max(values), name == "ours"))
    return (title, bars(f"{title} ({unit})", chosen)) if chosen else None


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A bar chart; thin lines show the lowest and the highest round."""
    scale = (WIDTH - LABEL - VALUE) / max(row.high for row in rows)
    parts = []
    for at, row in enumerate(rows):
        y = 40 + at * ROW
        middle = y + 11
        colour = ACCENT if row.ours else OTHERS
        low, high = (LABEL + value * scale for value in (row.low, row.high))
        length = max(row.value * scale, 1)
        bar = f'x="{LABEL}" y="{y}" width="{length:.1f}" height="22" rx="2"'
        ends = f"M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
        parts += [
            _text(LABEL - 10, y + 16, row.label, anchor="end"),
            f'<rect {bar} fill="{colour}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}{ends}" stroke="{TEXT}"/>',
            _text(high + 8, y + 16, number(row.value)),
        ]
    return _svg(title, parts, 40 + len(rows) * ROW + 6)


def _lines(run: Run) -> tuple[str, str] | None:
    series = {}
    for name, side in run.sides.items():
        rounds = run.stored["figures"].get("open transaction", {}).get(name, [])
        if rounds:
            series[side["title"]] = rounds[0]["series"]
    if not series:
        return None
    title = "Jobs per second while a transaction stays open"
    return title, lines(f"{title}, by its age", series)


def lines(title: str, series: dict[str, Sequence[Sequence[float]]]) -> str:
    """A line chart with a line for each series of (seconds, value)."""
    height = 300
    left, right, top, bottom = 70, WIDTH - 30, 66, height - 30
    until = max(seconds for points in series.values() for seconds, _ in points)
    most = max(value for points in series.values() for _, value in points)
    parts = []
    for step in range(5):
        y = bottom - step * (bottom - top) / 4
        parts += [
            f'<path d="M{left} {y:.1f}H{right}" stroke="{TEXT}" stroke-opacity=".3"/>',
            _text(left - 8, y + 4, f"{most * step / 4:,.0f}", anchor="end"),
            _text(
                left + step * (right - left) / 4,
                bottom + 20,
                f"{until * step / 4:.{0 if until >= 20 else 1}f} s",
                anchor="middle",
            ),
        ]
    for at, (label, points) in enumerate(series.items()):
        colour = (ACCENT, SECOND)[at % 2]
        path = " ".join(
            f"{left + x / until * (right - left):.1f},{bottom - y / most * (bottom - top):.1f}"
            for x, y in points
        )
        parts += [
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{left + at * 260}" y="36" width="12" height="12" fill="{colour}"/>',
            _text(left + at * 260 + 18, 47, label),
        ]
    return _svg(title, parts, height)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], height: int) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="{TEXT}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<text x="0" y="20" font-weight="bold">{escape(title)}</text>\n'
        f"{body}\n</svg>\n"
    )

"""Tables of measured figures, made from the file of a stored run."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure import Figure
from benchmarks.measures import GRAPHILE, HISTORY, MEASURES, PLUGINS

BEGIN = "<!-- results: written by `python -m benchmarks --render FILE` -->"
END = "<!-- end of results -->"

LIMITS = (
    ("batches of 24 (jobs/s): pgbench", "default", "pgbench", "rate"),
    ("batches of 500 (jobs/s): pgbench", "batched", "pgbench", "rate"),
    ("latency, median (ms): the statements alone", "latency", "floor", "p50"),
    ("latency, 99 % (ms): the statements alone", "latency", "floor", "p99"),
    ("start (s): importing asyncio and psycopg", "start", "floor", "seconds"),
)
"""The figures that are compared with a limit: title, measure, side of the limit, figure."""


KINDS = dict(zip(HISTORY, ("none", "failed (default)", "all"), strict=True))
"""The sides that measure history, and what they keep."""


@dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        stored: The contents of its file.
    """

    stored: dict[str, Any]

    def values(self, measure: str, side: str, figure: str) -> list[float]:
        """A figure of a side, round by round; empty if there are no measurements."""
        rounds = self.stored["figures"].get(measure, {}).get(side, [])
        return [outcome[figure] for outcome in rounds if figure in outcome]

    def median(self, measure: str, side: str, figure: str) -> float | None:
        """The median of a figure of a side; None if there are no measurements."""
        values = self.values(measure, side, figure)
        return statistics.median(values) if values else None

    @property
    def unavailable(self) -> dict[str, str]:
        """The sides that could not be measured, with the reason."""
        return dict(self.stored["unavailable"])

    @property
    def sides(self) -> dict[str, dict[str, str]]:
        """Title, version and settings of each measured side, by name."""
        return dict(self.stored["sides"])


def page(run: Run, plots: Sequence[tuple[str, str]]) -> str:
    """The results for a page of the documentation: a summary, plots (description, file), tables."""
    parts = [
        "## Results",
        summary(run),
        *(f"![{description}]({file})" for description, file in plots),
        about(run),
        "### Compared with Graphile Worker for Node",
        against_node(run),
        "### Compared with other queues for Python",
        against_peers(run),
        "### Compared with the server's limit",
        against_pgbench(run),
    ]
    if history := against_no_history(run):
        parts += ["### What history costs", history]
    if plugins := against_no_plugin(run):
        parts += ["### What metrics and traces cost", plugins]
    if limits := against_no_limits(run):
        parts += ["### What limits cost", limits]
    return "\n\n".join(part for part in parts if part)


def text(run: Run) -> str:
    """All tables, for the terminal."""
    parts = [about(run), against_node(run), against_peers(run), against_pgbench(run)]
    parts += [against_no_history(run), against_no_plugin(run), against_no_limits(run)]
    return "\n\n".join(part for part in parts if part)


def summary(run: Run) -> str:
    """The main figures in a sentence each, those of Node after them."""
    return "\n".join(f"- {words}." for words in _sentences(run))


def _sentences(run: Run) -> Iterator[str]:
    for measure, words in (
        ("default", "With default options, 24 jobs at a time"),
        ("batched", "With prefetching, in batches of 500"),
    ):
        ours, node = (run.values(measure, side, "rate") for side in GRAPHILE)
        if ours and node:
            yield (
                f"{words}: **{number(statistics.median(ours))} jobs per second**; "
                f"graphile-worker for Node runs {number(statistics.median(node))}"
            )
    ours, node = (run.values("latency", side, "p50") for side in GRAPHILE)
    if ours and node:
        yield (
            f"A single job starts **{number(statistics.median(ours))} ms** after it is added, "
            f"at the median; with Node after {number(statistics.median(node))} ms"
        )


def about(run: Run) -> str:
    """The machines, and the size of the run; a line for each machine and day."""
    groups: dict[str, list[str]] = {}
    for measure, measured in run.stored["measured"].items():
        machine = {k: v for k, v in measured["machine"].items() if k != "load_before"}
        groups.setdefault(json.dumps([measured["date"], machine]), []).append(measure)
    lines = [_group(run, measures) for measures in groups.values()]
    if len(lines) > 1:
        names = (", ".join(measures) for measures in groups.values())
        lines = [f"- {line[:-1]}: {these}." for line, these in zip(lines, names, strict=True)]
    return "\n".join(lines)


def _group(run: Run, measures: Sequence[str]) -> str:
    """What measures of one day and machine have in common."""
    all_measured = [run.stored["measured"][measure] for measure in measures]
    machine, scale = all_measured[0]["machine"], run.stored["scale"]
    loads = [each["machine"]["load_before"] for each in all_measured]
    load = " to ".join(f"{each:g}" for each in sorted({min(loads), max(loads)}))
    counts = {
        len(outcomes)
        for measure in measures
        for outcomes in run.stored["figures"].get(measure, {}).values()
        if outcomes
    } or {0}
    rounds = " to ".join(map(str, sorted({min(counts), max(counts)})))
    words = [
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB memory",
        machine["system"],
        f"PostgreSQL {machine['postgresql']} with its default settings, on the same machine",
        f"{rounds} {'round' if rounds == '1' else 'rounds'}",
        f"load average before the first round {load}",
        all_measured[0]["date"],
    ]
    if scale != 1:
        words.append(f"**numbers of jobs multiplied by {scale:g}: a trial, not a result**")
    return "; ".join(words) + "."


def against_node(run: Run) -> str:
    """Ours and Node: medians, and the median, lowest and highest ratio of a round."""
    lines = [
        "| measure | ours | Node | ours / Node | range |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for measure, name, figure in _figures():
        ours, node = (run.values(measure, side, name) for side in GRAPHILE)
        if not ours or not node:
            continue
        better = " (lower is better)" if not figure.more_is_better else ""
        lines.append(
            f"| {figure.title}{_unit(figure)}{better} | {number(statistics.median(ours))} "
            f"| {number(statistics.median(node))} | {_ratios(ours, node)} |"
        )
    sizes = [_kept_by_size(run, side) for side in GRAPHILE]
    if all(sizes):
        lines.append(
            f"| rate with 1,000,000 jobs waiting, divided by that with 10,000 "
            f"| {' | '.join(number(statistics.median(kept)) for kept in sizes)} "
            f"| {_ratios(*sizes)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def against_peers(run: Run) -> str:
    """A row for each side; for sides that could not be measured, the reason."""
    lines = [
        "| | jobs/s | slowest … fastest round | latency, median | latency, 99 % | version |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]
    for name, side in run.sides.items():
        rates = run.values("batched", name, "rate")
        latencies = [run.median("latency", name, part) for part in ("p50", "p99")]
        if not rates and latencies[0] is None:
            continue
        spread = f"{number(min(rates))} … {number(max(rates))}" if rates else ""
        cells = [f"{number(each)} ms" if each is not None else "" for each in latencies]
        rate = number(statistics.median(rates)) if rates else ""
        lines.append(
            f"| {side['title']} | {rate} | {spread} | {' | '.join(cells)} | {side['about']} |"
        )
    for name, reason in run.unavailable.items():
        lines.append(f"| {name} | not measured: {reason} | | | | |")
    return "\n".join(lines) if len(lines) > 2 else ""


def against_pgbench(run: Run) -> str:
    """Ours, the same statements without Python, and the least that any Python program needs."""
    lines = [
        "| | ours | limit | ours / limit | range |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for title, measure, side, figure in LIMITS:
        ours, limit = (run.values(measure, name, figure) for name in ("ours", side))
        if ours and limit:
            lines.append(
                f"| {title} | {number(statistics.median(ours))} "
                f"| {number(statistics.median(limit))} | {_ratios(ours, limit)} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def against_no_history(run: Run) -> str:
    """Rates and write-ahead log with each kind of history, and the rates as shares of none."""
    lines = [
        "| `history` | by 24 (jobs/s) | ÷ none | range | by 500 (jobs/s) | ÷ none | range | WAL |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    for side, kind in KINDS.items():
        cells = [kind]
        for figure in ("rate 24", "rate 500"):
            rates, none = (run.values("history", name, figure) for name in (side, HISTORY[0]))
            if not rates or not none:
                return ""
            cells += [number(statistics.median(rates)), _ratios(rates, none)]
        cells.append(number(statistics.median(run.values("history", side, "wal 500"))))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def against_no_plugin(run: Run) -> str:
    """Processor time of a job with each plugin, and how much more it is than without."""
    lines = [
        "| `hooks` | by 24 (µs/job) | more | range | by 500 (µs/job) | more | range |",
        "| --- | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for side in PLUGINS:
        cells = [side.removeprefix("with ") if side != PLUGINS[0] else "none"]
        for figure in ("cpu 24", "cpu 500"):
            costs, none = (run.values("plugins", name, figure) for name in (side, PLUGINS[0]))
            if not costs or not none:
                return ""
            more = [cost - least for cost, least in zip(costs, none, strict=True)]
            cells += [number(statistics.median(costs)), f"{statistics.median(more):.2f}"]
            cells.append(f"{min(more):.2f} … {max(more):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def against_no_limits(run: Run) -> str:
    """Rates with each kind of limit, and as shares of those without."""
    lines = [
        "| | without (jobs/s) | with (jobs/s) | with / without | range |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for title, measure, without, limited in (
        ("a limit on jobs of 50 ms", "limits", "unlimited", "limited"),
        ("a limit with a key on jobs that do nothing", "keyed", "unlimited", "keyed"),
    ):
        none, rates = (run.values(measure, side, "rate") for side in (without, limited))
        if none and rates:
            medians = [number(statistics.median(each)) for each in (none, rates)]
            lines.append(f"| {title} | {' | '.join(medians)} | {_ratios(rates, none)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def inserted(text: str, results: str) -> str:
    """The page with the results between its marks.

    Raises:
        ValueError: The page has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    middle = f"\n\n{results}\n\n" if results else "\n"
    return f"{before}{begin}{middle}{end}{after}"


def number(value: float) -> str:
    """A figure with its significant digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _figures() -> Iterator[tuple[str, str, Figure]]:
    for measure in MEASURES:
        for name, figure in measure.figures.items():
            yield measure.name, name, figure


def _kept_by_size(run: Run, side: str) -> list[float]:
    """The rate with a hundred times as many jobs, as a share of that with few, by round."""
    many, few = (run.values(f"{size} waiting", side, "rate") for size in ("1,000,000", "10,000"))
    return [a / b for a, b in zip(many, few, strict=True)] if many and few else []


def _unit(figure: Figure) -> str:
    return f" ({figure.unit})" if figure.unit else ""


def _ratios(ours: Sequence[float], others: Sequence[float]) -> str:
    """The last cells of a row: median and range of the ratios of each round."""
    if min(others) < 1e-6:
        return "– |"  # the other side ran no jobs
    ratios = [a / b for a, b in zip(ours, others, strict=True)]
    return f"{statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f}"

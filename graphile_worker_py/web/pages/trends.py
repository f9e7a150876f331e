"""Charts of what workers have recorded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from markupsafe import Markup

from graphile_worker_py.sql.task_minutes import Percentiles, longest_of, percentiles
from graphile_worker_py.sql.task_trends import Trend
from graphile_worker_py.web import charts, history
from graphile_worker_py.web.charts import Series
from graphile_worker_py.web.history import RANGES, Range
from graphile_worker_py.web.pages.rendering import seconds
from graphile_worker_py.web.site import Site

OUTCOMES: Final = ("completed", "retried", "failed")
MOST_TASKS: Final = 20
MOST_BARS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTimes:
    """The row of a task in the table below the charts."""

    task: str
    completed: int
    failed: int
    retried: int
    run: Percentiles | None
    wait: Percentiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charts:
    """The charts of one range of time.

    Args:
        throughput: Jobs by outcome in each step.
        times: Titles and charts of how long jobs ran and waited; empty if none did.
        spread: Titles and charts of how many jobs ran and waited how long.
        tasks: The tasks with the most jobs.
    """

    throughput: Markup
    times: list[tuple[str, Markup]]
    spread: list[tuple[str, Markup]]
    tasks: list[TaskTimes]


def chosen(request: Request) -> Range:
    """The range of time in the address; an hour if it has none."""
    return RANGES.get(request.query_params.get("range", ""), RANGES["1h"])


async def drawn(site: Site, wanted: Range, *, task: str | None = None) -> Charts | None:
    """The charts of one task, or of all; None without history."""
    found = await history.trends(site, wanted, task=task)
    if found is None:
        return None
    steps = _by_step(found, wanted)
    labels = [label for _, label in wanted.labels()]
    by_task = [each for each in found if each.task is not None]
    kinds: list[tuple[str, Callable[[Trend], Mapping[int, int]]]] = [
        ("Run time", lambda trend: trend.run),
        ("Waiting time", lambda trend: trend.wait),
    ]
    totals = [(title, _sum(histogram(each) for each in by_task)) for title, histogram in kinds]
    return Charts(
        throughput=_throughput(wanted, labels, steps),
        times=[
            (title, charts.lines(title, labels, _percentiles(steps, histogram), unit=" s"))
            for title, histogram in kinds
            if any(each is not None and histogram(each) for each in steps)
        ],
        spread=[(title, _spread(title, total)) for title, total in totals if total],
        tasks=[
            _times(each) for each in sorted(by_task, key=lambda each: -_jobs(each))[:MOST_TASKS]
        ],
    )


def _by_step(found: Sequence[Trend], wanted: Range) -> list[Trend | None]:
    first = wanted.labels()[0][0]
    steps: list[Trend | None] = [None] * len(wanted.labels())
    for each in found:
        if each.at is not None:
            index = int((each.at - first).total_seconds() // wanted.step)
            if 0 <= index < len(steps):
                steps[index] = each
    return steps


def _throughput(wanted: Range, labels: Sequence[str], steps: Sequence[Trend | None]) -> Markup:
    series = [
        Series(
            name=name,
            style=name,
            values=[0 if each is None else getattr(each, name) for each in steps],
        )
        for name in OUTCOMES
    ]
    return charts.bars(f"Jobs that ended in each {wanted.step / 60:.0f} min", labels, series)


def _percentiles(
    steps: Sequence[Trend | None], histogram: Callable[[Trend], Mapping[int, int]]
) -> list[Series]:
    measured = [None if each is None else percentiles(histogram(each)) for each in steps]
    return [
        Series(
            name=share,
            style=share,
            values=[None if each is None else getattr(each, share) for each in measured],
        )
        for share in ("p50", "p95")
    ]


def _spread(title: str, histogram: Mapping[int, int]) -> Markup:
    """How many jobs took how long: a bar for each bucket, or for some neighbours together."""
    first, last = min(histogram), max(histogram)
    width = -(-(last - first + 1) // MOST_BARS)
    bars: Counter[int] = Counter()
    for bucket, runs in histogram.items():
        bars[(bucket - first) // width] += runs
    labels = [
        f"≤ {seconds(longest_of(first + (at + 1) * width - 1))}" for at in range(max(bars) + 1)
    ]
    values = [bars[at] for at in range(len(labels))]
    jobs = Series(name="jobs", style="ready", values=values)
    return charts.bars(f"{title} of jobs", labels, [jobs], over="Took")


def _sum(histograms: Iterable[Mapping[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for each in histograms:
        total.update(each)
    return total


def _times(trend: Trend) -> TaskTimes:
    return TaskTimes(
        task=trend.task or "",
        completed=trend.completed,
        failed=trend.failed,
        retried=trend.retried,
        run=percentiles(trend.run),
        wait=percentiles(trend.wait),
    )


def _jobs(trend: Trend) -> int:
    return trend.completed + trend.failed + trend.retried

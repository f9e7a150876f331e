"""Charts of what workers have recorded."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fastapi import Request
from markupsafe import Markup

from graphile_worker_py.sql.task_minutes import TaskStats
from graphile_worker_py.web import charts, history
from graphile_worker_py.web.charts import Series
from graphile_worker_py.web.history import RANGES, Range
from graphile_worker_py.web.site import Site

OUTCOMES = ("completed", "retried", "failed")


def chosen(request: Request) -> Range:
    """The range of time in the address; an hour if it has none."""
    return RANGES.get(request.query_params.get("range", ""), RANGES["1h"])


async def throughput(site: Site, wanted: Range, *, task: str | None = None) -> Markup | None:
    """Jobs by outcome in each step; None without history."""
    found = await history.stats(site, wanted, task=task, step=wanted.step)
    if found is None:
        return None
    steps = wanted.labels()
    totals = history.added_up(found)
    values = _by_step(steps, totals, wanted.step)
    series = [
        Series(name=name, style=name, values=[each.get(name, 0) for each in values])
        for name in OUTCOMES
    ]
    title = f"Jobs that ended in each {wanted.step / 60:.0f} min"
    return charts.bars(title, [label for _, label in steps], series)


def _by_step(
    steps: Sequence[tuple[datetime, str]],
    totals: Mapping[datetime, Mapping[str, int]],
    step: float,
) -> list[dict[str, int]]:
    first = steps[0][0]
    values: list[dict[str, int]] = [{} for _ in steps]
    for at, counts in totals.items():
        index = int((at - first).total_seconds() // step)
        if 0 <= index < len(values):
            for name, count in counts.items():
                values[index][name] = values[index].get(name, 0) + count
    return values


async def times(site: Site, wanted: Range, *, task: str) -> list[Markup]:
    """How long jobs of a task waited and ran; empty without history."""
    found = await history.stats(site, wanted, task=task, step=wanted.step)
    if not found:
        return []
    steps = wanted.labels()
    labels = [label for _, label in steps]
    return [
        charts.lines(title, labels, _percentiles(found, steps, wanted.step, name), unit=" s")
        for title, name in (("Run time", "run"), ("Waiting time", "wait"))
    ]


def _percentiles(
    found: Sequence[TaskStats], steps: Sequence[tuple[datetime, str]], step: float, name: str
) -> list[Series]:
    first = steps[0][0]
    series = []
    for share in ("p50", "p95"):
        values: list[float | None] = [None] * len(steps)
        for each in found:
            index = int((each.at - first).total_seconds() // step)
            measured = getattr(each, name)
            if measured is not None and 0 <= index < len(values):
                values[index] = getattr(measured, share)
        series.append(Series(name=share, style=share, values=values))
    return series


async def by_task(site: Site, wanted: Range) -> list[TaskStats]:
    """The counters of each task over the whole range, those with the most jobs first."""
    found = await history.stats(site, wanted, step=None) or []
    return sorted(found, key=lambda each: -(each.completed + each.failed + each.retried))[:20]

"""The overview: how it stands, and what to look at."""

from fastapi import APIRouter, Request, Response

from graphile_worker_py.sql.inspect import JobState
from graphile_worker_py.web import charts, facts
from graphile_worker_py.web.census import Standing
from graphile_worker_py.web.charts import Series
from graphile_worker_py.web.context import viewer, web_of
from graphile_worker_py.web.history import RANGES, trends_fact
from graphile_worker_py.web.pages import trends
from graphile_worker_py.web.pages.entering import entered_by_link
from graphile_worker_py.web.pages.rendering import count_note, render

router = APIRouter()
MOST_TASKS = 10


@router.get("/")
async def overview(request: Request) -> Response:
    """The page."""
    entered = await entered_by_link(request)
    if entered is not None:
        return entered
    access = await viewer(request)
    site = web_of(request).site
    standing = await facts.standing(site)
    counts = standing.counts
    wanted = trends.chosen(request)
    await site.know(
        *await facts.of_workers(site),
        facts.unserved_fact(site.schema),
        facts.breakers_fact(site.schema),
        trends_fact(site.schema, wanted),
    )
    workers = await facts.workers(site)
    slots = sum(each.pool.concurrency or 0 for each in workers if each.pool and not each.is_dead)
    busy = sum(len(each.jobs) for each in workers if each.pool and not each.is_dead)
    tiles = [(str(state), None if counts is None else counts.of_state(state)) for state in JobState]
    return render(
        request,
        "overview.html",
        page="overview",
        title="Overview",
        access=access,
        tiles=tiles,
        note=count_note(standing),
        estimated=None if standing.sizes is None else standing.sizes.jobs,
        oldest=None if counts is None else counts.oldest,
        troubles=await facts.troubles(site),
        workers=workers,
        slots=slots,
        busy=busy,
        backlog=_backlog(standing),
        by_task=_by_task(standing),
        charts=await trends.drawn(site, wanted),
        ranges=list(RANGES),
        wanted=wanted.name,
    )


def _backlog(standing: Standing) -> object:
    """The jobs by state since a page was first open."""
    samples = _thinned(standing.samples, 120)
    if len(samples) < 2:
        return None
    labels = [
        f"-{seconds:.0f} s" if seconds < 100 else f"-{seconds / 60:.0f} min"
        for seconds, _ in samples
    ]
    series = [
        Series(
            name=str(state), style=str(state), values=[states[str(state)] for _, states in samples]
        )
        for state in JobState
        if state is not JobState.SCHEDULED
    ]
    return charts.lines("Jobs since this page was first open", labels, series)


def _thinned(
    samples: list[tuple[float, dict[str, int]]], most: int
) -> list[tuple[float, dict[str, int]]]:
    step = max(len(samples) // most, 1)
    return samples[::-1][::step][::-1]


def _by_task(standing: Standing) -> list[tuple[str, dict[str, int], float]]:
    """The tasks with the most waiting jobs, each with its share of the largest."""
    counts = standing.counts
    if counts is None:
        return []
    found = {task: counts.of_task(task) for task in counts.tasks()}
    waiting = {
        task: jobs["ready"] + jobs["running"] + jobs["failed"] for task, jobs in found.items()
    }
    first = sorted((task for task in found if waiting[task]), key=lambda task: -waiting[task])
    largest = max(waiting.values(), default=1) or 1
    return [(task, found[task], waiting[task] / largest) for task in first[:MOST_TASKS]]

"""The pages that show jobs, tasks, queues, workers, crontab items, errors and the tables."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup

from graphile_worker_py import json_codec
from graphile_worker_py.clock import utc_now
from graphile_worker_py.looking import explaining
from graphile_worker_py.looking.explaining import counted
from graphile_worker_py.postgres.query import Steps
from graphile_worker_py.postgres.together import one, side_by_side
from graphile_worker_py.sql.cleanup import CleanupTask
from graphile_worker_py.sql.error_groups import ErrorGroup as RecordedErrors
from graphile_worker_py.sql.inspect import JobState, get_job
from graphile_worker_py.sql.job_state import read_reported
from graphile_worker_py.sql.pauses import PAUSE_PREFIX, Pause
from graphile_worker_py.sql.table_sizes import read_oldest_transaction, read_table_sizes
from graphile_worker_py.sql.windows import Filter
from graphile_worker_py.web import (
    audit,
    charts,
    errors,
    facts,
    filters,
    history,
    limiting,
    listing,
    pausing,
    shown,
)
from graphile_worker_py.web import recurring as recurring_items
from graphile_worker_py.web.api.models import JobId
from graphile_worker_py.web.changes import gone_after
from graphile_worker_py.web.context import Viewer, web_of
from graphile_worker_py.web.copying import copies
from graphile_worker_py.web.pages import trends
from graphile_worker_py.web.pages.rendering import count_note, render, root
from graphile_worker_py.web.pages.suggesting import suggestions
from graphile_worker_py.web.site import Site

router = APIRouter()
PAGE_SIZE: Final = 50
LONGEST_SHOWN: Final = 20_000
Text = Annotated[str, Query(max_length=1000)]


@router.get("/jobs")
async def jobs(request: Request, access: Viewer, q: Text = "", after: Text = "") -> Response:
    """Jobs, with a filter in the address."""
    site = web_of(request).site
    fault, page = None, None
    wanted = Filter()
    try:
        wanted = filters.parse(q)
    except filters.FilterError as error:
        fault = str(error)
    else:
        listing.check_allowed(wanted, access, site)
        fact = await listing.page_fact(site, wanted, limit=PAGE_SIZE, cursor=after or None)
        await site.know(fact, history.is_reported(site.schema))
        page = await site.fact(fact)
    standing = await facts.standing(site)
    return render(
        request,
        "jobs.html",
        page="jobs",
        title="Jobs",
        access=access,
        q=q,
        suggestions=suggestions(
            q,
            standing.counts,
            [] if page is None else page.jobs,
            access,
            site.redaction,
        ),
        after=after,
        fault=fault,
        wanted=wanted,
        listed=page,
        states=[(str(state), _narrowed(wanted, state)) for state in JobState],
        all_states=_narrowed(wanted, None),
        counts=standing.counts,
        note=count_note(standing),
        error_of=lambda job: shown.error_of(job, access, site.redaction),
        reported={} if page is None else await history.reported(site, page.jobs),
    )


def _narrowed(wanted: Filter, state: JobState | None) -> str:
    return filters.written(replace(wanted, state=state))


@router.get("/jobs/{job_id}")
async def job(request: Request, access: Viewer, job_id: JobId) -> Response:
    """One job: why it does not run, its payload, its last error."""
    site = web_of(request).site
    found, explanation, runs, changes, reported = await site.drive(_all_about(site, job_id))
    if found is None:
        raise gone_after(job_id, runs, changes)
    payload = shown.payload_of(found, access, site.redaction).decode(errors="replace")
    known = (reported or {}).get(job_id)
    is_its = found.state is JobState.RUNNING and known and known.created_at == found.created_at
    return render(
        request,
        "job.html",
        page="jobs",
        title=f"Job {job_id}",
        access=access,
        job=found,
        explanation=shown.explanation_json(explanation, access, site.redaction),
        payload=payload[:LONGEST_SHOWN],
        payload_is_cut=len(payload) > LONGEST_SHOWN or len(found.payload_json) >= 1_048_576,
        payload_size=len(found.payload_json),
        editable=found.payload_json.decode(errors="replace") == payload,
        error=shown.error_of(found, access, site.redaction),
        flags=shown.flags_of(found),
        changes=changes,
        runs=runs,
        hide_json=lambda value: site.redaction.payload(json_codec.dumps(value)).decode(),
        reported=known if is_its else None,
        locked_for=facts.locked_for(found),
        copies=copies(
            found,
            payload,
            schema=site.schema,
            address=f"{request.url.scheme}://{request.url.netloc}{root(request)}",
        ),
    )


def _all_about(site: Site, job_id: int) -> Steps[list[Any]]:
    """Read a job, why it does not run, its runs, who has changed it, and what it has reported."""
    return side_by_side(
        one(get_job(job_id)),
        explaining.explain(job_id, site.schema),
        history.runs_of(site.schema, job_id),
        audit.rows(site, job_id=job_id, limit=20),
        history.kept(read_reported(site.schema, [job_id])),
    )


@router.get("/tasks")
async def tasks(request: Request, access: Viewer, find: Text = "") -> Response:
    """All tasks with their jobs by state."""
    site = web_of(request).site
    standing = await facts.standing(site)
    await site.know(facts.pools_fact(site.schema), facts.NAMES, pausing.fact(site.schema))
    pools = await facts.pools(site)
    names = [name for name in await facts.task_names(site) if find.lower() in name.lower()]
    return render(
        request,
        "tasks.html",
        pauses=await _pauses(site),
        page="tasks",
        title="Tasks",
        access=access,
        find=find,
        tasks=[
            (
                name,
                None if standing.counts is None else standing.counts.of_task(name),
                None if pools is None else sum(name in (each.tasks or ()) for each in pools),
            )
            for name in names[:500]
        ],
        number=len(names),
        note=count_note(standing),
    )


@router.get("/tasks/{name:path}")
async def task(request: Request, access: Viewer, name: str) -> Response:
    """One task."""
    site = web_of(request).site
    standing = await facts.standing(site)
    wanted = trends.chosen(request)
    page_fact = await listing.page_fact(site, Filter(task=name), limit=20)
    await site.know(
        *await facts.of_workers(site),
        page_fact,
        history.is_reported(site.schema),
        await errors.groups_fact(site),
        limiting.limits_fact(site.schema),
        history.trends_fact(site.schema, wanted, task=name),
    )
    workers = await facts.workers(site)
    page = await site.fact(page_fact)
    groups = [group for group in await errors.groups(site) if group.task == name]
    return render(
        request,
        "task.html",
        page="tasks",
        title=name,
        access=access,
        name_of_task=name,
        jobs=None if standing.counts is None else standing.counts.of_task(name),
        note=count_note(standing),
        workers=[each for each in workers if each.pool and name in (each.pool.tasks or ())],
        limits=[each for each in await limiting.read(site) if name in each.tasks],
        listed=page,
        reported=await history.reported(site, page.jobs),
        groups=groups if access.payloads else [],
        group_query=_of_group,
        query=filters.written(Filter(task=name)),
        charts=await trends.drawn(site, wanted, task=name),
        ranges=list(history.RANGES),
        wanted=wanted.name,
        failed_query=filters.written(Filter(task=name, state=JobState.FAILED)),
    )


async def _pauses(site: Site) -> dict[tuple[str, str], Pause]:
    """What is paused, by kind and name."""
    return {(str(each.target), each.name): each for each in await pausing.read(site)}


@router.get("/queues")
async def queues(request: Request, access: Viewer) -> Response:
    """The queues that have jobs or are locked."""
    site = web_of(request).site
    standing = await facts.standing(site)
    counts = standing.counts
    await site.know(*await facts.of_workers(site), pausing.fact(site.schema))
    jobs = {} if counts is None or counts.queues is None else dict(counts.queues)
    locked = {queue.name: queue for queue in await facts.locked_queues(site)}
    names = [*locked, *sorted({*jobs} - {*locked}, key=lambda name: -jobs[name])]
    dead = {each.pool_id for each in await facts.workers(site) if each.is_dead}
    return render(
        request,
        "queues.html",
        pauses=await _pauses(site),
        page="queues",
        title="Queues",
        access=access,
        queues=[(name, jobs.get(name, 0), locked.get(name)) for name in names[: facts.MOST]],
        number=len(names),
        counted=counts is not None and counts.queues is not None,
        dead=dead,
        pause_prefix=PAUSE_PREFIX,
        note=count_note(standing),
        query=lambda name: filters.written(Filter(queue=name)),
    )


@router.get("/workers")
async def workers(request: Request, access: Viewer) -> Response:
    """All pools."""
    site = web_of(request).site
    await site.know(
        *await facts.of_workers(site),
        pausing.fact(site.schema),
        history.is_reported(site.schema),
    )
    found = await facts.workers(site)
    return render(
        request,
        "workers.html",
        pauses=await _pauses(site),
        page="workers",
        title="Workers",
        access=access,
        workers=found,
        reported=await history.reported(site, [job for each in found for job in each.jobs[:50]]),
        registers=await facts.pools(site) is not None,
        missing=explaining.NO_SIDE_SCHEMA,
        locked_for=facts.locked_for,
    )


@router.get("/recurring")
async def recurring(request: Request, access: Viewer) -> Response:
    """The crontab items."""
    site = web_of(request).site
    return render(
        request,
        "recurring.html",
        page="recurring",
        title="Recurring",
        access=access,
        items=await recurring_items.items(site),
    )


@router.get("/errors")
async def errors_page(request: Request, access: Viewer) -> Response:
    """The groups of errors."""
    site = web_of(request).site
    standing = await facts.standing(site)
    if access.payloads:
        await site.know(await errors.groups_fact(site), history.groups_fact(site.schema))
    found = await errors.groups(site) if access.payloads else []
    return render(
        request,
        "errors.html",
        page="errors",
        title="Errors",
        access=access,
        groups=found,
        recorded=await history.groups(site) if access.payloads else [],
        most=history.MOST_GROUPS,
        by_hour=_by_hour,
        grouped=sum(group.jobs for group in found),
        failed=None if standing.counts is None else standing.counts.of_state(JobState.FAILED),
        note=count_note(standing),
        query=_of_group,
    )


def _of_group(group: errors.ErrorGroup) -> str:
    """The filter that finds the jobs of a group."""
    wanted = Filter(state=JobState.FAILED, task=group.task, error=group.find or None)
    return filters.written(wanted)


def _by_hour(group: RecordedErrors) -> Markup:
    """The errors of a group in each hour of the last day."""
    now = utc_now().replace(minute=0, second=0, microsecond=0)
    counts = [group.by_hour.get(now - timedelta(hours=back), 0) for back in range(23, -1, -1)]
    return charts.spark(f"{counted(max(counts), 'error')} in the worst hour", counts)


@router.get("/maintenance")
async def maintenance(request: Request, access: Viewer, before: int | None = None) -> Response:
    """Sizes of tables, cleanup, and the audit log."""
    site = web_of(request).site
    standing = await facts.standing(site)
    sizes, oldest, rows = await site.drive(
        side_by_side(
            one(read_table_sizes(site.schema)),
            one(read_oldest_transaction()),
            audit.rows(site, before=before, limit=50),
        )
    )
    failed = None if standing.counts is None else standing.counts.of_state(JobState.FAILED)
    return render(
        request,
        "maintenance.html",
        page="maintenance",
        title="Maintenance",
        access=access,
        sizes=sizes,
        oldest=oldest,
        audit=rows if site.has_tables else None,
        cleanups=_cleanups(failed),
        decode=json.loads,
    )


AGES: Final = (
    ("", "at any time"),
    ("1d", "more than a day ago"),
    ("7d", "more than 7 days ago"),
    ("30d", "more than 30 days ago"),
    ("90d", "more than 90 days ago"),
)
"""How long ago jobs failed for the last time that a cleanup deletes."""


def _cleanups(failed: int | None) -> list[tuple[str, str, str, Sequence[tuple[str, str]]]]:
    known = "?" if failed is None else f"{failed:,}"
    return [
        (
            str(CleanupTask.DELETE_PERMAFAILED_JOBS),
            "Delete jobs that were given up",
            "1 job now" if failed == 1 else f"{known} jobs now",
            AGES,
        ),
        (
            str(CleanupTask.GC_JOB_QUEUES),
            "Delete queues without jobs",
            "best while nothing runs",
            (),
        ),
    ]

"""What pages show besides jobs, for programs."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from graphile_worker_py import json_codec
from graphile_worker_py.sql.inspect import JobState
from graphile_worker_py.sql.pauses import PAUSE_PREFIX
from graphile_worker_py.sql.web_tables import read_audit
from graphile_worker_py.web import facts, recurring
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import TEXT
from graphile_worker_py.web.context import Viewer, WebDep
from graphile_worker_py.web.live import Streams

router = APIRouter(tags=["facts"])
Object = dict[str, Any]


@router.get("/stats", response_model=Object, responses=problems(), summary="Numbers of jobs")
async def stats(web: WebDep, _access: Viewer) -> Response:
    """How many jobs are in each state, and how good these numbers are."""
    return answer((await facts.standing(web.site)).as_json())


@router.get("/tasks", response_model=Object, responses=problems(), summary="List tasks")
async def tasks(web: WebDep, _access: Viewer) -> Response:
    """The tasks with their jobs by state, and the pools that have them."""
    counts = (await facts.standing(web.site)).counts
    pools = await facts.pools(web.site)
    items = [
        {
            "task": name,
            "jobs": None if counts is None else counts.of_task(name),
            "pools": None if pools is None else sum(name in (each.tasks or ()) for each in pools),
        }
        for name in await facts.task_names(web.site)
    ]
    return answer({"items": items})


@router.get(
    "/tasks/{task:path}", response_model=Object, responses=problems(404), summary="Read a task"
)
async def task(web: WebDep, _access: Viewer, task: str) -> Response:
    """One task: its jobs by state, and the pools that have it."""
    counts = (await facts.standing(web.site)).counts
    pools = await facts.pools(web.site)
    told = {
        "task": task,
        "jobs": None if counts is None else counts.of_task(task),
        "pools": None
        if pools is None
        else [each.pool_id for each in pools if task in (each.tasks or ())],
    }
    return answer(told)


@router.get("/queues", response_model=Object, responses=problems(), summary="List queues")
async def queues(web: WebDep, _access: Viewer) -> Response:
    """The queues that have jobs or are locked. `counted` is false where there are too many."""
    counts = (await facts.standing(web.site)).counts
    locked = {queue.name: queue for queue in await facts.locked_queues(web.site)}
    jobs = {} if counts is None or counts.queues is None else dict(counts.queues)
    names = [*locked, *sorted({*jobs} - {*locked}, key=lambda name: -jobs[name])][: facts.MOST]
    items = []
    for name in names:
        holder = locked[name].locked_by if name in locked else None
        items.append(
            {
                "name": name,
                "jobs": jobs.get(name),
                "locked_by": holder,
                "locked_for": locked[name].locked_for if name in locked else None,
                "paused": (holder or "").startswith(PAUSE_PREFIX),
            }
        )
    counted = counts is not None and counts.queues is not None
    return answer({"items": items, "counted": counted})


@router.get("/workers", response_model=Object, responses=problems(), summary="List worker pools")
async def workers(web: WebDep, _access: Viewer) -> Response:
    """Python pools as they report themselves, and Node pools as their locks show them."""
    found = await facts.workers(web.site)
    return answer({"items": [facts.worker_json(worker) for worker in found]})


@router.get("/cron", response_model=Object, responses=problems(), summary="List crontab items")
async def cron(web: WebDep, _access: Viewer) -> Response:
    """The crontab items that a worker ever registered, with their next runs and missed ones."""
    found = await recurring.items(web.site)
    return answer({"items": [item.as_json() for item in found]})


@router.get("/health", response_model=Object, responses=problems(), summary="List problems")
async def health(web: WebDep, _access: Viewer) -> Response:
    """What a person should look at."""
    found = await facts.troubles(web.site)
    counts = (await facts.standing(web.site)).counts
    return answer(
        {
            "troubles": [asdict(trouble) for trouble in found],
            "read_only": web.site.is_read_only,
            "replica": web.site.is_replica,
            "audit": web.site.has_tables,
            "failed": None if counts is None else counts.of_state(JobState.FAILED),
        }
    )


@router.get("/audit", response_model=Object, responses=problems(), summary="Read the audit log")
async def audit_log(
    web: WebDep,
    _access: Viewer,
    job_id: Annotated[int | None, Query(ge=-(2**63), le=2**63 - 1)] = None,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """Every change, the newest first. `before` is the `id` of the last row of the page before."""
    await web.site.open()
    if not web.site.has_tables:
        return answer({"items": [], "missing": "the schema graphile_worker_py has no audit log"})
    query = read_audit(web.site.schema, job_id=job_id, before=before, limit=limit)
    rows = await web.site.read(query)
    items = [
        {
            **asdict(row),
            "filter": None if row.filter is None else json_codec.loads(row.filter),
            "details": None if row.details is None else json_codec.loads(row.details),
        }
        for row in rows
    ]
    return answer({"items": items, "missing": None})


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, **problems()},
    summary="Server-sent events",
)
async def events(
    request: Request,
    _access: Viewer,
    topics: Annotated[str, Query(max_length=200, pattern=TEXT)] = "",
) -> StreamingResponse:
    """Server-sent events; always begins with the current state."""
    streams: Streams = request.app.state.streams
    wanted = [topic for topic in topics.split(",") if topic]
    return StreamingResponse(
        streams.stream(wanted), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )

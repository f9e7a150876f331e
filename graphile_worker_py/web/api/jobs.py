"""Read jobs, and add one."""

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Request, Response

from graphile_worker_py.looking import explaining
from graphile_worker_py.sql.inspect import JobState, ListedJob, get_job
from graphile_worker_py.sql.job_ends import EndStatus, JobOutcome
from graphile_worker_py.sql.windows import Filter
from graphile_worker_py.web import adding, filters, history, listing, shown
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import (
    TEXT,
    AddedJob,
    ExplanationOut,
    JobId,
    JobOut,
    JobsOut,
    NewJob,
)
from graphile_worker_py.web.changes import gone
from graphile_worker_py.web.context import Operator, Viewer, Web, WebDep
from graphile_worker_py.web.problems import Fault, ProblemError

router = APIRouter(tags=["jobs"])
LONGEST_WAIT: Final = 60.0
WAIT_INTERVAL: Final = 0.25
Text = Annotated[str | None, Query(max_length=1000, pattern=TEXT)]


@router.post(
    "/jobs",
    status_code=201,
    response_model=AddedJob,
    responses={
        200: {"model": AddedJob, "description": "It has ended, or an earlier request added it."},
        202: {"model": AddedJob, "description": "Added; it has not ended in time."},
        **problems(400, 409, 413, 429),
    },
    summary="Add a job",
)
async def add_job(
    request: Request,
    web: WebDep,
    access: Operator,
    job: NewJob,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    prefer: Annotated[str | None, Header()] = None,
) -> Response:
    """Add a job. With `Idempotency-Key`, a request that is sent again adds nothing.

    `Prefer: wait=10` waits for the end of the job: 200 with its `outcome`, else 202. Where
    workers keep history, a record of its end is kept for that.
    """
    wait = _wait(prefer)
    async with web.gate.entered(), web.gate.admitted({job.task: 1}):
        is_awaited = wait is not None and await history.is_kept(web.site, "awaited")
        spec = job.spec(awaited=is_awaited)
        if idempotency_key is None:
            job_id, is_new = (await adding.add(web.site, access, spec)).id, True
        else:
            job_id, is_new = await adding.add_once(
                web.site,
                access,
                spec,
                key=idempotency_key,
                print_=adding.fingerprint(job.model_dump_json().encode()),
            )
    headers = {"Location": f"{request.scope.get('root_path', '')}/api/v1/jobs/{job_id}"}
    if not is_new:
        headers["Idempotency-Replayed"] = "true"
    status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
    added: dict[str, Any] = {"id": job_id}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait:g}"
        end = await _end(web, job_id, wait)
        status = HTTPStatus.ACCEPTED if end is None else HTTPStatus.OK
        if end is not None:
            added["outcome"] = shown.outcome_json(end, access, web.site.redaction)
    return answer(added, status=status, headers=headers)


def _wait(prefer: str | None) -> float | None:
    for part in (prefer or "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "wait" and value.isdecimal() and len(value) < 6:
            return min(float(value), LONGEST_WAIT)
    return None


async def _end(web: Web, job_id: int, wait: float) -> JobOutcome | None:
    """Wait for the end of a job; None if it has not ended in time."""
    try:
        async with asyncio.timeout(wait):
            while True:
                look = await history.end(web.site, job_id)
                if look.outcome is not None:
                    return look.outcome
                if not look.exists:
                    return JobOutcome(status=EndStatus.GONE)
                await asyncio.sleep(WAIT_INTERVAL)
    except TimeoutError:
        return None


@router.get("/jobs", response_model=JobsOut, responses=problems(400), summary="List jobs")
async def list_jobs(
    request: Request,
    web: WebDep,
    access: Viewer,
    task: Text = None,
    state: JobState | None = None,
    queue: Text = None,
    key: Text = None,
    text: Text = None,
    q: Annotated[
        str | None, Query(max_length=1000, description="A filter: `task:a state:failed text`.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=listing.MOST)] = 50,
    after: Annotated[str | None, Query(max_length=60, description="`next` of a page.")] = None,
) -> Response:
    """List jobs, the newest first. Looks at a window of ids, and says where it ends."""
    wanted = parsed(q or "")
    given = Filter(state=state, task=task, queue=queue, key=key, text=text)
    wanted = _joined(wanted, given)
    listing.check_allowed(wanted, access, web.site)
    page = await listing.list_page(web.site, wanted, limit=limit, cursor=after)
    headers = {}
    if page.next is not None:
        parameters = {**request.query_params, "after": page.next}
        headers["Link"] = f'<{request.url.path}?{urlencode(parameters)}>; rel="next"'
    return answer(
        {
            "items": [shown.job_json(job, access, web.site.redaction) for job in page.jobs],
            "next": page.next,
            "window": {"complete": page.complete, "from_id": page.from_id},
        },
        headers=headers,
    )


def parsed(text: str) -> Filter:
    """A filter as the user has written it."""
    try:
        return filters.parse(text)
    except filters.FilterError as error:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY, str(error), faults=[Fault("q", str(error))]
        ) from error


def _joined(wanted: Filter, given: Filter) -> Filter:
    """Both filters; parameters of their own win over `q`."""
    names = ("state", "task", "queue", "key", "text")
    values = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return replace(wanted, **values)


async def _job(web: Web, job_id: int) -> ListedJob:
    found = await web.site.read(get_job(job_id))
    if found is None:
        raise await gone(web.site, job_id)
    return found


@router.get(
    "/jobs/{job_id}", response_model=JobOut, responses=problems(404, 410), summary="Read a job"
)
async def read_job(web: WebDep, access: Viewer, job_id: JobId) -> Response:
    """Read one job."""
    return answer(shown.job_json(await _job(web, job_id), access, web.site.redaction))


@router.get(
    "/jobs/{job_id}/payload",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}}, **problems(404, 410)},
    summary="Download a payload",
)
async def download_payload(web: WebDep, access: Viewer, job_id: JobId) -> Response:
    """The payload alone, however large, byte for byte but for what is redacted."""
    if not access.payloads:
        raise ProblemError(HTTPStatus.FORBIDDEN, "you may not see payloads")
    job = await _job(web, job_id)
    return Response(
        web.site.redaction.payload(job.payload_json),
        media_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="job-{job_id}.json"'},
    )


@router.get(
    "/jobs/{job_id}/explain",
    response_model=ExplanationOut,
    responses=problems(404, 410),
    summary="Why is a job not running?",
)
async def explain_job(web: WebDep, access: Viewer, job_id: JobId) -> Response:
    """Ordered reasons, each with the fact and the remedy."""
    found = await web.site.drive(explaining.explain(job_id, web.site.schema))
    if found.state is None:
        raise await gone(web.site, job_id)
    return answer(shown.explanation_json(found, access, web.site.redaction))

"""What workers have recorded of jobs."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Response

from graphile_worker_py import json_codec
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.inspect import JobState, get_job
from graphile_worker_py.sql.runs import JobRun, RunOutcome
from graphile_worker_py.web import errors, history, stacking
from graphile_worker_py.web.access import Access
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import JobId, StackOut
from graphile_worker_py.web.changes import gone
from graphile_worker_py.web.context import Viewer, WebDep
from graphile_worker_py.web.redact import Redaction
from graphile_worker_py.web.shown import moment

router = APIRouter(tags=["history"])
Object = dict[str, Any]
INTERVAL: Final = 0.25
MISSING: Final = "no history is kept in this database, or the role may not read it"
UNFINISHED: Final = frozenset({RunOutcome.RETRIED, RunOutcome.SNOOZED, RunOutcome.KILLED})


def run_json(run: JobRun, access: Access, redaction: Redaction) -> Object:
    """An attempt for programs."""

    def text(value: str | None) -> str | None:
        if value is None or not access.payloads:
            return None
        return redaction.text(masked_text(value))

    shows = access.payloads and run.result is not None
    result = orjson.Fragment(redaction.payload(json_codec.dumps(run.result))) if shows else None
    return {
        "attempt": run.attempt,
        "outcome": str(run.outcome),
        "run_at": moment(run.run_at),
        "started_at": moment(run.started_at),
        "finished_at": moment(run.finished_at),
        "wait": run.wait,
        "duration": run.duration,
        "pool_id": run.pool_id,
        "error": text(run.error),
        "logs": text(run.logs),
        "result": result,
        "result_omitted": run.result_omitted,
    }


@router.get(
    "/jobs/{job_id}/runs", response_model=Object, responses=problems(), summary="List attempts"
)
async def job_runs(web: WebDep, access: Viewer, job_id: JobId) -> Response:
    """The attempts of a job that ended, the first one first."""
    found = await history.job_runs(web.site, job_id)
    items = [run_json(run, access, web.site.redaction) for run in found or ()]
    return answer({"items": items, "missing": MISSING if found is None else None})


@router.get(
    "/jobs/{job_id}/outcome",
    response_model=Object,
    responses=problems(404, 410),
    summary="Wait for the outcome",
)
async def job_outcome(
    web: WebDep,
    access: Viewer,
    job_id: JobId,
    wait: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0,
) -> Response:
    """The state of a job, and its last attempt; waits up to `wait` seconds for its end."""
    until = asyncio.get_running_loop().time() + wait
    while True:
        job = await web.site.read(get_job(job_id))
        is_over = job is None or job.state is JobState.FAILED
        if is_over or asyncio.get_running_loop().time() >= until:
            break
        await asyncio.sleep(INTERVAL)
    runs = await history.job_runs(web.site, job_id)
    if job is None and (not runs or runs[-1].outcome in UNFINISHED):
        raise await gone(web.site, job_id)
    last = run_json(runs[-1], access, web.site.redaction) if runs else None
    state = "ended" if job is None else str(job.state)
    return answer({"state": state, "over": is_over, "last_run": last})


@router.get(
    "/jobs/{job_id}/stack",
    response_model=StackOut,
    responses=problems(404, 410),
    summary="Where is a running job?",
)
async def job_stack(web: WebDep, access: Viewer, job_id: JobId) -> Response:
    """Where the task of a running job is at this moment, as its Python pool answers."""
    job, stack = await stacking.look(web.site, access, job_id)
    return answer({"job_id": job.id, "state": str(job.state), "stack": stack})


@router.get("/errors", response_model=Object, responses=problems(), summary="List groups of errors")
async def list_errors(web: WebDep, access: Viewer) -> Response:
    """Jobs that were given up, and failed attempts of the last day, each by kind of error."""
    if not access.payloads:
        return answer({"given_up": [], "attempts": [], "missing": "you may not see errors"})
    hide = web.site.redaction.text
    given_up = [
        {
            "task": group.task,
            "error": hide(group.kind),
            "jobs": group.jobs,
            "example": group.example,
        }
        for group in await errors.groups(web.site)
    ]
    recorded = await history.groups(web.site)
    attempts = [
        {
            **asdict(group),
            "by_hour": {moment(at): count for at, count in group.by_hour.items()},
            "first_seen": moment(group.first_seen),
            "last_seen": moment(group.last_seen),
            "error": None if group.error is None else hide(masked_text(group.error)),
        }
        for group in recorded or ()
    ]
    missing = MISSING if recorded is None else None
    return answer({"given_up": given_up, "attempts": attempts, "missing": missing})

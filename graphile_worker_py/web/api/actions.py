"""Change jobs: retry, cancel, reschedule, fail, delete; one or many."""

import secrets
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import StreamingResponse

from graphile_worker_py import json_codec
from graphile_worker_py.web import changes, listing
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.jobs import parsed
from graphile_worker_py.web.api.models import Added, Bulk, Done, Failure, JobId, Reschedule
from graphile_worker_py.web.changes import Action, Change
from graphile_worker_py.web.context import Admin, Operator, WebDep, admin

router = APIRouter(tags=["actions"])


@router.post(
    "/jobs/actions",
    response_model=Done,
    responses=problems(400, 409, 413, 415),
    summary="Change many jobs",
)
async def change_jobs(request: Request, web: WebDep, access: Operator, bulk: Bulk) -> Response:
    """Change the jobs with `ids`, or all that `filter` lets through; running ones are skipped.

    With `Accept: application/x-ndjson` the first line has the count, and one follows after each
    1,000 jobs. A closed connection stops the action after its chunk.
    """
    if bulk.action is Action.DELETE:
        await admin(request, access)
    wanted, ids, complete = None, bulk.ids, True
    if ids is None:
        wanted = parsed(bulk.filter or "")
        listing.check_allowed(wanted, access, web.site)
        selection = await changes.select(web.site, wanted)
        ids, complete = selection.ids, selection.complete
    ids = sorted(set(ids))
    told = {
        "operation": secrets.token_hex(8),
        "action": str(bulk.action),
        "count": len(ids),
        "complete": complete,
        "dry_run": bulk.dry_run,
        "done": 0,
        "skipped": 0,
    }
    if bulk.dry_run:
        return answer(told)

    async def goes_on() -> bool:
        return not await request.is_disconnected()

    progress = changes.change_many(
        web.site, access, bulk.change(), ids, wanted=wanted, goes_on=goes_on
    )
    if "application/x-ndjson" in request.headers.get("accept", ""):

        async def lines() -> AsyncIterator[bytes]:
            yield json_codec.dumps(told) + b"\n"
            async for step in progress:
                line = {**told, "done": step.done, "skipped": step.skipped}
                yield json_codec.dumps(line) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")
    async for step in progress:
        told |= {"done": step.done, "skipped": step.skipped}
    return answer(told)


@router.post(
    "/jobs/{job_id}/retry",
    response_model=Added,
    responses=problems(404, 409, 410),
    summary="Retry a job",
)
async def retry_job(web: WebDep, access: Operator, job_id: JobId) -> Response:
    """Give a job all its attempts again; it is due now."""
    await changes.change_one(web.site, access, Change(action=Action.RETRY), job_id)
    return answer({"id": job_id})


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=Added,
    responses=problems(404, 409, 410),
    summary="Cancel a job",
)
async def cancel_job(web: WebDep, access: Operator, job_id: JobId) -> Response:
    """Delete a job that waits; end one that runs in a Python worker."""
    await changes.change_one(web.site, access, Change(action=Action.CANCEL), job_id)
    return answer({"id": job_id})


@router.post(
    "/jobs/{job_id}/reschedule",
    response_model=Added,
    responses=problems(400, 404, 409, 410, 413),
    summary="Reschedule a job",
)
async def reschedule_job(
    web: WebDep, access: Operator, job_id: JobId, given: Reschedule
) -> Response:
    """Change when a job runs, or its priority."""
    change = Change(action=Action.RESCHEDULE, run_at=given.run_at, priority=given.priority)
    await changes.change_one(web.site, access, change, job_id)
    return answer({"id": job_id})


@router.post(
    "/jobs/{job_id}/fail",
    response_model=Added,
    responses=problems(400, 404, 409, 410, 413),
    summary="Give a job up",
)
async def fail_job(
    web: WebDep, access: Operator, job_id: JobId, given: Annotated[Failure | None, Body()] = None
) -> Response:
    """Use up all attempts of a job; its row stays."""
    reason = None if given is None else given.reason
    await changes.change_one(web.site, access, Change(action=Action.FAIL, reason=reason), job_id)
    return answer({"id": job_id})


@router.delete(
    "/jobs/{job_id}", status_code=204, responses=problems(404, 409, 410), summary="Delete a job"
)
async def delete_job(web: WebDep, access: Admin, job_id: JobId) -> Response:
    """Delete a job that does not run."""
    await changes.change_one(web.site, access, Change(action=Action.DELETE), job_id)
    return Response(status_code=204)

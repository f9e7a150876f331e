"""The page that shows where the task of a running job is at this moment."""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response

from graphile_worker_py.history.stacks import ask
from graphile_worker_py.postgres.masking import masked_text
from graphile_worker_py.sql.inspect import JobState, get_job
from graphile_worker_py.web.api.models import JobId
from graphile_worker_py.web.changes import gone
from graphile_worker_py.web.context import Viewer, web_of
from graphile_worker_py.web.pages.rendering import render
from graphile_worker_py.web.problems import ProblemError

router = APIRouter()
PATIENCE: Final = 2.0
"""Seconds to wait for the pool."""


@router.get("/jobs/{job_id}/stack")
async def stack(request: Request, access: Viewer, job_id: JobId) -> Response:
    """The stack of a job that a Python pool runs."""
    site = web_of(request).site
    if not access.payloads:
        raise ProblemError(
            HTTPStatus.FORBIDDEN, "stacks show code, which only users see who see payloads"
        )
    found = await site.read(get_job(job_id))
    if found is None:
        raise await gone(site, job_id)
    shown = None
    if found.state is JobState.RUNNING:
        database = await site.open()
        shown = await site.cache.get(
            ("stack", job_id), 1.0, lambda: ask(database, job_id, timeout=PATIENCE)
        )
    return render(
        request,
        "stack.html",
        page="jobs",
        title=f"Stack of job {job_id}",
        access=access,
        job=found,
        stack=None if shown is None else site.redaction.text(masked_text(shown)),
    )

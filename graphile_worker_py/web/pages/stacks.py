"""The page that shows where the task of a running job is at this moment."""

from fastapi import APIRouter, Request, Response

from graphile_worker_py.web import stacking
from graphile_worker_py.web.api.models import JobId
from graphile_worker_py.web.context import Viewer, web_of
from graphile_worker_py.web.pages.rendering import render

router = APIRouter()


@router.get("/jobs/{job_id}/stack")
async def stack(request: Request, access: Viewer, job_id: JobId) -> Response:
    """The stack of a job that a Python pool runs."""
    found, shown = await stacking.look(web_of(request).site, access, job_id)
    return render(
        request,
        "stack.html",
        page="jobs",
        title=f"Stack of job {job_id}",
        access=access,
        job=found,
        stack=shown,
    )

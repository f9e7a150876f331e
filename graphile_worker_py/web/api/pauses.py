"""Pause tasks, queues, pools and everything, and resume them."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from graphile_worker_py.checks import MAX_IDENTIFIER_LENGTH
from graphile_worker_py.web import pausing
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import TEXT, NewPause, PauseOut, PausesOut
from graphile_worker_py.web.context import Operator, Viewer, WebDep
from graphile_worker_py.web.problems import ProblemError

router = APIRouter(tags=["pauses"])
Name = Annotated[str | None, Query(min_length=1, max_length=MAX_IDENTIFIER_LENGTH, pattern=TEXT)]


def _targets(
    task: Name = None,
    queue: Name = None,
    pool: Name = None,
    everything: bool = False,  # noqa: FBT001, FBT002  # a parameter of the query
) -> dict[str, Any]:
    return {"task": task, "queue": queue, "pool": pool, "everything": everything}


Targets = Annotated[dict[str, Any], Depends(_targets)]


@router.get("/pauses", response_model=PausesOut, responses=problems(), summary="List pauses")
async def pauses(web: WebDep, _access: Viewer) -> Response:
    """What is paused, by whom, why and until when."""
    return answer({"items": [each.as_json() for each in await pausing.read(web.site)]})


@router.post(
    "/pauses",
    response_model=PauseOut,
    responses=problems(400, 413, 415),
    status_code=201,
    summary="Pause",
)
async def pause(web: WebDep, access: Operator, given: NewPause) -> Response:
    """Start no more jobs of a task, of a queue, in pools of a name, or at all."""
    made = await pausing.pause(
        web.site, access, given.targets(), reason=given.reason, until=given.until
    )
    return answer(made.as_json(), status=HTTPStatus.CREATED)


@router.delete("/pauses", response_model=PauseOut, responses=problems(404), summary="Resume")
async def resume(web: WebDep, access: Operator, targets: Targets) -> Response:
    """End the pause of one thing."""
    ended = await pausing.resume(web.site, access, targets)
    if ended is None:
        raise ProblemError(HTTPStatus.NOT_FOUND, "that is not paused")
    return answer(ended.as_json())

"""List the limits of tasks, set their numbers, and clear them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from graphile_worker_py.sql.limits import LimitKind
from graphile_worker_py.web import limiting
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import TEXT, LimitOut, LimitsOut, NewNumber
from graphile_worker_py.web.context import Operator, Viewer, WebDep

router = APIRouter(tags=["limits"])


@router.get("/limits", response_model=LimitsOut, responses=problems(), summary="List limits")
async def limits(web: WebDep, _access: Viewer) -> Response:
    """The limits of tasks: how much of each is used, by which pools, and why jobs wait."""
    found = await limiting.read(web.site)
    return answer({"items": [limiting.as_json(each) for each in found]})


@router.post(
    "/limits",
    response_model=LimitOut,
    responses=problems(400, 404, 413, 415),
    summary="Set the number of a limit",
)
async def set_limit(web: WebDep, access: Operator, given: NewNumber) -> Response:
    """Set the number of a limit. It counts until it is cleared; 0 pauses the tasks."""
    now = await limiting.set_number(web.site, access, given.name, given.amount, kind=given.kind)
    return answer(limiting.as_json(now))


@router.delete("/limits", response_model=LimitOut, responses=problems(404), summary="Clear a limit")
async def clear_limit(
    web: WebDep,
    access: Operator,
    name: Annotated[str, Query(min_length=1, max_length=1_000, pattern=TEXT)],
    kind: LimitKind | None = None,
) -> Response:
    """Let the number in the code count again."""
    now = await limiting.set_number(web.site, access, name, None, kind=kind)
    return answer(limiting.as_json(now))

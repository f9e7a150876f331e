"""List the circuit breakers of tasks, and close them."""

from fastapi import APIRouter, Response

from graphile_worker_py.web import limiting
from graphile_worker_py.web.api.answers import answer, problems
from graphile_worker_py.web.api.models import BreakerName, BreakerOut, BreakersOut
from graphile_worker_py.web.context import Operator, Viewer, WebDep

router = APIRouter(tags=["limits"])


@router.get(
    "/breakers", response_model=BreakersOut, responses=problems(), summary="List circuit breakers"
)
async def breakers(web: WebDep, access: Viewer) -> Response:
    """The circuit breakers of tasks: which are open, since when, until when, and why."""
    found = await limiting.breakers(web.site)
    items = [limiting.breaker_json(each, access, web.site.redaction) for each in found]
    return answer({"items": items})


@router.post(
    "/breakers/reset",
    response_model=BreakerOut,
    responses=problems(400, 404, 413, 415),
    summary="Close a circuit breaker",
)
async def reset(web: WebDep, access: Operator, given: BreakerName) -> Response:
    """Close a circuit breaker, so that all jobs of its tasks go on."""
    now = await limiting.reset(web.site, access, given.name)
    return answer(limiting.breaker_json(now, access, web.site.redaction))

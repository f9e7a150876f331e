"""The page of limits and breakers, and its forms."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from graphile_worker_py.looking.limited import waiting_reason
from graphile_worker_py.sql.limits import LimitKind
from graphile_worker_py.web import facts, limiting
from graphile_worker_py.web.context import Operator, Viewer, web_of
from graphile_worker_py.web.pages.rendering import back, render
from graphile_worker_py.web.problems import ProblemError

router = APIRouter()


@router.get("/limits")
async def limits(request: Request, access: Viewer) -> Response:
    """The limits of tasks, and how much of them is used; their breakers."""
    site = web_of(request).site
    await site.know(limiting.limits_fact(site.schema), facts.breakers_fact(site.schema))
    found = await limiting.read(site)
    breakers = sorted(await limiting.breakers(site), key=lambda each: each.state == "closed")
    return render(
        request,
        "limits.html",
        page="limits",
        title="Limits",
        access=access,
        limits=found[: facts.MOST],
        number=len(found),
        reason=waiting_reason,
        breakers=breakers[: facts.MOST],
        number_of_breakers=len(breakers),
        opened_by=lambda each: limiting.reason_of(each, access, site.redaction),
    )


@router.post("/limits")
async def change(request: Request, access: Operator) -> Response:
    """Set the number of a limit, or let that of the code count again."""
    async with request.form(max_fields=10, max_files=0) as form:
        given = {name: value for name, value in form.items() if isinstance(value, str)}
    try:
        kind = LimitKind(given.get("kind", ""))
        amount = None if given.get("action") == "clear" else int(given.get("amount", ""))
    except ValueError as error:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "give a whole number of at least 0"
        ) from error
    name = given.get("name", "")
    await limiting.set_number(web_of(request).site, access, name, amount, kind=kind)
    return back(request, "limits", done="clear_limit" if amount is None else "set_limit")


@router.post("/breakers/reset")
async def reset(request: Request, access: Operator) -> Response:
    """Close a breaker."""
    async with request.form(max_fields=10, max_files=0) as form:
        name = form.get("name")
    if not isinstance(name, str):
        raise ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "choose a breaker")
    await limiting.reset(web_of(request).site, access, name)
    return back(request, "limits", done="reset_breaker")

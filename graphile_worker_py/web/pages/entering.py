"""Log in and out."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from graphile_worker_py.web.access import SESSION, Access, cookie_name
from graphile_worker_py.web.context import access_or_none, web_of
from graphile_worker_py.web.pages.rendering import link, render, root

router = APIRouter()


@router.get("/login")
async def log_in_page(
    request: Request,
    next_: Annotated[str, Query(alias="next", max_length=1000)] = "",
    token: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The form; a link with a token logs in at once."""
    if token is not None:
        return _entered(request, {"token": token}, next_)
    return _form(request, next_, failed=False)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Take what the form was filled in with."""
    form = await request.form(max_fields=10, max_files=0)
    given = {name: value for name, value in form.items() if isinstance(value, str)}
    return _entered(request, given, given.pop("next", ""))


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """Forget the cookie."""
    answer = RedirectResponse(link(request, "login"), status_code=303)
    answer.delete_cookie(cookie_name(request), path=_cookie_path(request))
    return answer


async def entered_by_link(request: Request) -> Response | None:
    """Log in by `?token=…` of any page; None if there is none, or the user is in."""
    token = request.query_params.get("token")
    if token is None or not web_of(request).door.form:
        return None
    if await access_or_none(request) is not None:
        return RedirectResponse(link(request, ""), status_code=303)
    return _entered(request, {"token": token}, "")


def _entered(request: Request, given: dict[str, str], path: str) -> Response:
    access = web_of(request).door.log_in(given)
    if access is None:
        return _form(request, path, failed=True)
    answer = RedirectResponse(link(request, _own(path)), status_code=303)
    _set_cookie(request, answer, access)
    return answer


def _own(path: str) -> str:
    """A path of ours, so that a link can't lead elsewhere after the log-in."""
    is_own = "//" not in path and "\\" not in path and ":" not in path.partition("?")[0]
    return path.lstrip("/") if is_own else ""


def _set_cookie(request: Request, answer: Response, access: Access) -> None:
    answer.set_cookie(
        cookie_name(request),
        web_of(request).sessions.issue(access),
        max_age=int(SESSION),
        path=_cookie_path(request),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _cookie_path(request: Request) -> str:
    # The prefix `__Host-` asks for this path. Several databases share their log-in.
    if request.url.scheme == "https":
        return "/"
    web = web_of(request)
    return root(request).removesuffix(f"/{web.settings.name}") or "/"


def _form(request: Request, path: str, *, failed: bool) -> Response:
    return render(
        request,
        "login.html",
        page="",
        title="Log in",
        access=None,
        status=401 if failed else 200,
        fields=web_of(request).door.form,
        next=path,
        failed=failed,
    )

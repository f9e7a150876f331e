"""What the handlers of requests share, and what they may rely on about the user."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request

from graphile_worker_py.web.access import Access, Door, Level, Sessions, cookie_name
from graphile_worker_py.web.adding import Gate
from graphile_worker_py.web.problems import ProblemError
from graphile_worker_py.web.settings import Settings
from graphile_worker_py.web.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The parts of one application.

    Attributes:
        site: The database.
        settings: What the application was given.
        door: How users get in.
        sessions: The cookies of those who did.
        gate: What keeps the backlog below its limit.
        others: The other databases, by name.
    """

    site: Site
    settings: Settings
    door: Door
    sessions: Sessions
    gate: Gate
    others: tuple[str, ...] = ()


def web_of(request: Request) -> Web:
    """The application that handles a request."""
    return request.app.state.web  # type: ignore[no-any-return]


WebDep = Annotated[Web, Depends(web_of)]


async def access_or_none(request: Request) -> Access | None:
    """The user of a request; None if they have not logged in."""
    web = web_of(request)
    found = await web.door.knock(request)
    if found is None and web.door.form:
        found = web.sessions.read(request.cookies.get(cookie_name(request)))
    if found is not None and not web.settings.show_payloads:
        return Access(found.user, found.level, payloads=False)
    return found


async def viewer(request: Request) -> Access:
    """A user who may look.

    Raises:
        ProblemError: Nobody has logged in (401).
    """
    found = await access_or_none(request)
    if found is None:
        challenge = web_of(request).door.challenge
        raise ProblemError(
            HTTPStatus.UNAUTHORIZED,
            "log in first, or send credentials",
            headers={} if challenge is None else {"WWW-Authenticate": challenge},
        )
    return found


Viewer = Annotated[Access, Depends(viewer)]


async def operator(request: Request, access: Viewer) -> Access:
    """A user who may steer jobs."""
    return await _changing(request, access, Level.OPERATOR)


async def admin(request: Request, access: Viewer) -> Access:
    """A user who may do everything."""
    return await _changing(request, access, Level.ADMIN)


async def _changing(request: Request, access: Access, level: Level) -> Access:
    if access.level < level:
        raise ProblemError(
            HTTPStatus.FORBIDDEN, f"{access.user} may not do this: it needs {level.name.lower()}"
        )
    # A database that was not reached yet is not asked: the rest of the request may be wrong.
    if web_of(request).site.is_read_only:
        raise ProblemError(HTTPStatus.FORBIDDEN, "nothing can be changed here: it is read-only")
    return access


Operator = Annotated[Access, Depends(operator)]
Admin = Annotated[Access, Depends(admin)]

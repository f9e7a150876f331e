"""Make the application from its parts."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

import psycopg
import psycopg_pool
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.postgres.connecting import AsyncPool
from graphile_worker_py.web.access import LOOPBACK, Authorize, Door, HostDoor, Sessions, TokenDoor
from graphile_worker_py.web.adding import Gate
from graphile_worker_py.web.api import (
    actions,
    breakers,
    bulk,
    facts,
    history,
    jobs,
    limits,
    models,
    pauses,
    probes,
)
from graphile_worker_py.web.context import Web
from graphile_worker_py.web.live import Streams
from graphile_worker_py.web.problems import CONTENT_TYPE, Fault, ProblemError, problem_of
from graphile_worker_py.web.settings import AUDIT_RETENTION, DEFAULT_REDACT, Settings
from graphile_worker_py.web.shield import Shield
from graphile_worker_py.web.site import Site

ERRORS: Final = (
    psycopg.Error,
    psycopg_pool.PoolTimeout,
    psycopg_pool.TooManyRequests,
    OSError,
    TimeoutError,
    GraphileWorkerError,
    Exception,
)


def create_app(
    dsn_or_pool: str | AsyncPool | None = None,
    *,
    schema: str | None = None,
    databases: Mapping[str, str | AsyncPool] | None = None,
    authorize: Authorize | None = None,
    read_only: bool | None = None,
    redact: Sequence[str] = DEFAULT_REDACT,
    show_payloads: bool = True,
    pages: bool = True,
    api: bool = True,
    max_backlog: int | Mapping[str, int] | None = None,
    max_body: int = 1_048_576,
    max_bulk_body: int = 10_485_760,
    max_bulk: int = 10_000,
    statement_timeout: float = 2.0,
    pool_size: int = 3,
    links: Mapping[str, str] | None = None,
    audit_retention: timedelta | str = AUDIT_RETENTION,
) -> FastAPI:
    """Make an ASGI application: run it, or mount it below a prefix of another one.

    Args:
        dsn_or_pool: A connection string, a `psycopg_pool.AsyncConnectionPool` of the caller's, or
            None for `DATABASE_URL` or libpq's variables.
        schema: Schema of the job tables; None means `GRAPHILE_WORKER_SCHEMA`, else
            `graphile_worker`.
        databases: Several databases by name, instead of `dsn_or_pool`; each is below its name.
        authorize: Called with each request; returns the `Access` of its user, or None for nobody.
            It may be async. Without it, requests must name a loopback host, and one log-in is
            possible with the token `app.state.door.token`.
        read_only: Whether nothing can be changed; None asks the database.
        redact: Patterns of keys whose values are hidden in payloads, errors and the audit log.
        show_payloads: Whether anybody sees payloads, errors and results.
        pages: Whether there are pages.
        api: Whether there is an API.
        max_backlog: How many jobs may be ready, in all or for each of some tasks, before
            `POST /jobs` answers 429.
        max_body: Bytes that the body of a request may have.
        max_bulk_body: The same for `POST /jobs/bulk`.
        max_bulk: Jobs that one bulk request may add.
        statement_timeout: Seconds that a statement may take.
        pool_size: Most connections for each connection string.
        links: Further links in the navigation: name and URL.
        audit_retention: How long rows of the audit log are kept, such as `90d`.

    Raises:
        ConfigurationError: A value is not allowed; the message names it.
    """
    settings = Settings(
        schema=schema,
        read_only=read_only,
        redact=redact,
        show_payloads=show_payloads,
        pages=pages,
        api=api,
        max_backlog=max_backlog,
        max_body=max_body,
        max_bulk_body=max_bulk_body,
        max_bulk=max_bulk,
        statement_timeout=statement_timeout,
        pool_size=pool_size,
        links=dict(links or {}),
        audit_retention=audit_retention,
    )
    return _behind_door(dsn_or_pool, databases, settings, authorize)


def _behind_door(
    source: str | AsyncPool | None,
    databases: Mapping[str, str | AsyncPool] | None,
    settings: Settings,
    authorize: Authorize | None,
) -> FastAPI:
    door: Door = TokenDoor() if authorize is None else HostDoor(authorize)
    hosts = LOOPBACK if authorize is None else None
    if databases is None:
        return build(source, settings, door=door, hosts=hosts)
    if source is not None or not databases:
        raise ConfigurationError("give either one database, or at least one in databases")
    return build_many(databases, settings, door=door, hosts=hosts)


def build(
    source: str | AsyncPool | None,
    settings: Settings,
    *,
    door: Door,
    hosts: Collection[str] | None,
    sessions: Sessions | None = None,
    others: Sequence[str] = (),
) -> FastAPI:
    """Make the application of one database; see `create_app`.

    Args:
        source: The database.
        settings: What the application was given.
        door: How users get in.
        hosts: The hosts that requests may name; None means any.
        sessions: Cookies that hold log-ins; None means those of this application alone.
        others: Names of the other databases.
    """
    site = Site(source, settings)
    app = _closing(site, openapi_url="/api/v1/openapi.json" if settings.api else None)
    app.state.web = Web(
        site=site,
        settings=settings,
        door=door,
        sessions=Sessions() if sessions is None else sessions,
        gate=Gate(site),
        others=tuple(others),
    )
    app.state.door = door
    app.state.streams = Streams(site)
    app.include_router(probes.probes)
    app.include_router(probes.router)
    if settings.api:
        app.include_router(_api())
    if settings.pages:
        from graphile_worker_py.web.pages import add_pages  # noqa: PLC0415  # only where wanted

        add_pages(app)
    app.add_middleware(Shield, settings=settings, hosts=hosts)
    _handle_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _closing(site: Site, *, openapi_url: str | None) -> FastAPI:
    """An application without routes that closes the database when it ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await site.close()

    return FastAPI(
        title="graphile-worker-py",
        openapi_url=openapi_url,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )


def build_many(
    databases: Mapping[str, str | AsyncPool],
    settings: Settings,
    *,
    door: Door,
    hosts: Collection[str] | None,
) -> FastAPI:
    """Make an application that has one of each database below its name."""
    from dataclasses import replace  # noqa: PLC0415

    sessions = Sessions()
    apps = {
        name: build(
            source,
            replace(settings, name=name),
            door=door,
            hosts=hosts,
            sessions=sessions,
            others=list(databases),
        )
        for name, source in databases.items()
    }
    parent = _above(apps)
    parent.state.door = door
    parent.add_middleware(Shield, settings=settings, hosts=hosts)
    _handle_errors(parent)
    return parent


def _above(apps: Mapping[str, FastAPI]) -> FastAPI:
    """An application that has each of these below its name, and leads to the first."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in apps.values():
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    parent = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    parent.include_router(probes.probes)
    first = next(iter(apps))

    @parent.get("/", include_in_schema=False)
    async def to_first(request: Request) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        return Response(status_code=303, headers={"Location": f"{_root(request)}/{first}/{query}"})

    for name, app in apps.items():
        parent.mount(f"/{name}", app)
    parent.state.web = apps[first].state.web
    return parent


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _api() -> APIRouter:
    api = APIRouter(prefix="/api/v1")
    parts = (bulk, actions, jobs, history, facts, pauses, limits, breakers)
    for part in (each.router for each in parts):
        api.include_router(part)
    return api


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title="graphile-worker-py",
            version="1",
            summary="Add, inspect and steer jobs.",
            routes=app.routes,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (models.ProblemOut, models.NewJob):
            found = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(found.pop("$defs", {}))
            schemas[model.__name__] = found
        for path in document["paths"].values():
            for call in path.values():
                # Ours has pointers; FastAPI's own would be another shape.
                refused = call["responses"].get("422", {})
                if "application/json" in refused.get("content", {}):
                    refused["content"] = {
                        CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}
                    }
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        app.openapi_schema = document
    return app.openapi_schema


def _handle_errors(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        return await _refusal(request, _problem(error))

    for kind in (RequestValidationError, HTTPException, ProblemError, *ERRORS):
        app.add_exception_handler(kind, refuse)


def _problem(error: Exception) -> ProblemError:
    match error:
        case RequestValidationError():
            faults = [
                Fault(_pointer(each["loc"]), each["msg"].removeprefix("Value error, "))
                for each in error.errors()
            ]
            said = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:3])
            is_broken = any(each["type"] == "json_invalid" for each in error.errors())
            status = HTTPStatus.BAD_REQUEST if is_broken else HTTPStatus.UNPROCESSABLE_ENTITY
            return ProblemError(status, said, faults=faults[:100])
        case ProblemError():
            return error
        case HTTPException():
            status = HTTPStatus(error.status_code)
            detail = status.description or status.phrase
            if status is HTTPStatus.NOT_FOUND:
                detail = "there is nothing at this address"
            return ProblemError(status, detail, headers=error.headers)
    return problem_of(error)


def _pointer(place: Sequence[int | str]) -> str:
    kind, *rest = place
    if kind == "body":
        return "/" + "/".join(str(each).replace("~", "~0").replace("/", "~1") for each in rest)
    return str(rest[0]) if rest else str(kind)


async def _refusal(request: Request, problem: ProblemError) -> Response:
    web: Web = request.app.state.web
    wants_page = "text/html" in request.headers.get("accept", "")
    is_api = "/api/" in request.url.path
    if web.settings.pages and wants_page and not is_api:
        from graphile_worker_py.web.pages import error_page  # noqa: PLC0415

        return await error_page(request, problem)
    return Response(
        problem.document(),
        status_code=int(problem.status),
        media_type=CONTENT_TYPE,
        headers=dict(problem.headers or {}),
    )

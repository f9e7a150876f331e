"""Starlette, and FastAPI on top of it: utils for requests, a worker beside them, and progress."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from types import ModuleType
from typing import Any, Final, TypeAlias, TypedDict, cast

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from graphile_worker_py import json_codec
from graphile_worker_py.checks import check_job_id, check_seconds
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import Job
from graphile_worker_py.plugins import Plugins
from graphile_worker_py.runner import Runner, run_migrations
from graphile_worker_py.runner_options import RunnerOptions
from graphile_worker_py.sql.job_ends import JobOutcome, JobProgress
from graphile_worker_py.steering.handles import JobHandle
from graphile_worker_py.tasks.task import Tasks
from graphile_worker_py.worker_utils import WorkerUtils

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager["State"]]

SHORTEST_SECRET: Final = 16
"""Bytes; a shorter one could be guessed."""
TOKEN_AGE: Final = 24 * 3600.0
INTERVAL: Final = 0.5
"""Seconds between two looks at a job; worker pools report progress every two seconds."""
LONGEST_STREAM: Final = 30.0
KEEP_ALIVE: Final = 10.0
MOST_STREAMS: Final = 500


class State(TypedDict):
    """What `lifespan` adds to `request.state`."""

    graphile_worker: WorkerUtils


def lifespan(
    dsn: str | None = None,
    tasks: Tasks | ModuleType | str | None = None,
    *,
    schema: str | None = None,
    migrate: bool = True,
    side_schema: bool = False,
    hooks: Plugins = (),
    **options: Any,
) -> Lifespan:
    """A lifespan for `Starlette` or `FastAPI`: it opens a `WorkerUtils` for all requests.

    With `tasks`, it runs a worker pool, too. The server handles signals: when it stops, running
    jobs finish, as when a `Runner` stops. To use it within a lifespan of yours, write
    `async with lifespan(dsn)(app) as state: yield {**state, ...}`.

    Args:
        dsn: Connection string; None means `DATABASE_URL` or libpq's variables.
        tasks: Tasks to run beside the requests, as for `Runner`; None runs none.
        schema: As for `WorkerUtils`.
        migrate: Whether to install or upgrade the schema at the start. Otherwise a missing schema
            is an error.
        side_schema: Whether to install the schema `graphile_worker_py` at the start, which
            `JobStream` and awaited jobs need. Worker pools install it themselves, a moment after
            their start.
        hooks: Plugins, for adding and for running jobs.
        options: Further options of the `Runner`; see `RunnerOptions`.

    Raises:
        ConfigurationError: There are options of a `Runner`, but no tasks.
    """
    if options and tasks is None:
        raise ConfigurationError(
            f"{', '.join(options)}: options for running jobs were given, but no tasks"
        )

    @asynccontextmanager
    async def opened(_app: Any) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            if side_schema:
                await run_migrations(dsn, schema=schema, side_schema=True, hooks=hooks)
            utils = WorkerUtils(dsn, schema=schema, migrate=migrate, hooks=hooks)
            await stack.enter_async_context(utils)
            if tasks is not None:
                own = {**options, "tasks": tasks, "schema": schema, "hooks": hooks}
                own["no_handle_signals"] = True
                await stack.enter_async_context(Runner(dsn, **cast(RunnerOptions, own)))
            yield {"graphile_worker": utils}

    return opened


def utils(connection: HTTPConnection) -> WorkerUtils:
    """The `WorkerUtils` of the application, for a request or a websocket.

    In FastAPI, it is a dependency: `Depends(utils)`.

    Raises:
        GraphileWorkerError: The application was started without `lifespan`.
    """
    found = getattr(connection.state, "graphile_worker", None)
    if not isinstance(found, WorkerUtils):
        raise GraphileWorkerError(
            "there is no WorkerUtils: give the application lifespan=lifespan(dsn), and yield its "
            "state if yours is around it; tests must start the lifespan, as TestClient does in a "
            "`with` block"
        )
    return found


class JobStream:
    """A route that streams the progress of one job to a browser, as server-sent events.

    Its URL has a token, which your application makes for a job and gives to the user who may follow
    it. An event `progress` has `state`, `progress`, `total` and `message`; the last event, `end`,
    has the `status` of the job. The schema `graphile_worker_py` must be there.

    Args:
        secret: Signs tokens; at least 16 bytes, the same in all processes.
        path: Path of the route; it must have `{token}`.
        max_age: Seconds for which a token is valid.
        results: Whether `end` has the `result` of the job, or its `error`.
        longest: Seconds after which a stream ends, and the browser's `EventSource` connects again.
            A server that stops waits for its streams.
        keep_alive: Seconds after which a stream without news sends a comment.

    Raises:
        ConfigurationError: The secret is too short, or the path has no `{token}`.
    """

    def __init__(
        self,
        secret: str | bytes,
        *,
        path: str = "/jobs/{token}/progress",
        max_age: float = TOKEN_AGE,
        results: bool = False,
        longest: float = LONGEST_STREAM,
        keep_alive: float = KEEP_ALIVE,
    ) -> None:
        self._secret = secret.encode() if isinstance(secret, str) else secret
        if len(self._secret) < SHORTEST_SECRET:
            raise ConfigurationError(
                f"secret must have at least {SHORTEST_SECRET} bytes, not {len(self._secret)}: "
                f"make one with secrets.token_urlsafe()"
            )
        if "{token}" not in path:
            raise ConfigurationError(f"path must have {{token}} in it, not {path!r}")
        self._max_age = check_seconds("max_age", max_age, above_zero=True)
        self._path = path
        self._results = results
        self._longest = check_seconds("longest", longest, above_zero=True)
        self._keep_alive = check_seconds("keep_alive", keep_alive, above_zero=True)
        self._open = 0
        self.route = Route(path, self._respond, methods=["GET"])
        """The route, to be added to those of the application."""

    def token(self, job: Job | int | str) -> str:
        """A token that lets its holder follow a job, given by itself or by its id."""
        job_id = job.id if isinstance(job, Job) else check_job_id("job", job)
        body = f"{job_id}.{int(time.time() + self._max_age)}"
        return base64.urlsafe_b64encode(f"{body}.{self._signature(body)}".encode()).decode()

    def url(self, job: Job | int | str) -> str:
        """The path to follow a job, with a token for it."""
        return self._path.replace("{token}", self.token(job))

    def _signature(self, body: str) -> str:
        return hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()

    def _job_of(self, token: str) -> int:
        try:
            job_id, until, signature = base64.urlsafe_b64decode(token).decode("ascii").split(".")
        except (ValueError, binascii.Error):
            job_id, until, signature = "", "0", ""
        expected = self._signature(f"{job_id}.{until}")
        if not hmac.compare_digest(signature, expected) or int(until) < time.time():
            raise HTTPException(HTTPStatus.FORBIDDEN, "the token is not valid, or has expired")
        return int(job_id)

    async def _respond(self, request: Request) -> Response:
        handle = utils(request).handle(self._job_of(request.path_params["token"]))
        if self._open >= MOST_STREAMS:
            raise HTTPException(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MOST_STREAMS} streams are open",
                headers={"Retry-After": "10"},
            )
        # Errors of this first look still become an answer of their own.
        first = await _look(handle, within=0)
        return StreamingResponse(
            self._events(handle, first),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    async def _events(
        self, handle: JobHandle, found: JobProgress | JobOutcome | None
    ) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            yield b"retry: 1000\n\n"
            sent, spoken = None, time.monotonic()
            end = spoken + self._longest
            while True:
                if isinstance(found, JobOutcome):
                    yield _event("end", self._outcome(found))
                    return
                if found is not None and found != sent:
                    sent, spoken = found, time.monotonic()
                    yield _event("progress", _progress(found))
                elif time.monotonic() - spoken > self._keep_alive:
                    spoken = time.monotonic()
                    yield b":\n\n"
                if time.monotonic() > end:
                    return
                found = await _look(handle, within=INTERVAL)
        finally:
            self._open -= 1

    def _outcome(self, outcome: JobOutcome) -> dict[str, Any]:
        shown: dict[str, Any] = {"status": outcome.status}
        if self._results:
            shown |= {"result": outcome.result, "error": outcome.error}
        return shown


async def _look(handle: JobHandle, *, within: float) -> JobProgress | JobOutcome | None:
    try:
        return await handle.wait(within)
    except TimeoutError:
        return await handle.state()


def _progress(state: JobProgress) -> dict[str, Any]:
    return {
        "state": state.state,
        "progress": state.progress,
        "total": state.total,
        "message": state.message,
    }


def _event(name: str, shown: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), json_codec.dumps(shown))
